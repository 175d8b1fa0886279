"""Modules on top of ops, with explicit arguments."""
