"""Tools of those who develop this package."""
