"""Models as Hugging Face's transformers loads them; ``writing`` and ``reading`` work without that package."""
