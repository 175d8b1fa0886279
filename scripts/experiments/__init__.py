"""Claims of papers, tested in small experiments: python -m scripts.experiments.NAME."""
