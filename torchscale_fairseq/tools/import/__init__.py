"""Import models from other libraries' formats."""

SUBCOMMANDS = {"hf": "make a checkpoint of fairseq from a folder that export hf wrote"}
