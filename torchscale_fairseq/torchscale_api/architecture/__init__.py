"""See the package ``official``."""
