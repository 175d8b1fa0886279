"""Export checkpoints for other libraries."""

SUBCOMMANDS = {"hf": "make a folder that Hugging Face's transformers loads"}
