"""Image files, their labels and captions."""
