"""Figures and configuration that a run logs."""
