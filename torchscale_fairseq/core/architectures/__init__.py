"""Builders: a config in, a model out."""
