"""Errors as one sentence each, from every process of a command."""
