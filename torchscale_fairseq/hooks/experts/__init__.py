"""Training with experts that several processes hold."""
