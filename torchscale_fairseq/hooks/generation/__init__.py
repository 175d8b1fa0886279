"""Repairs of the commands that generate, score and evaluate."""
