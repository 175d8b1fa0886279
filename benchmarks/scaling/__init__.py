"""Training on one GPU and on several of the same host, with equal tokens per GPU; see ``__main__.py``."""
