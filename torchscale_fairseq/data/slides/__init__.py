"""Whole slides as bags of tiles: features and coordinates."""
