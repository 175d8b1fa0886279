"""Data on disk: text, images, and tables that belong to them."""
