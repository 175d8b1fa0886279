"""Types of options that several subcommands have."""

import argparse
from pathlib import Path


def positive(word: str) -> int:
    """A whole number from 1 on.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} must be a whole number of at least 1")
    return int(word)


def location(word: str) -> str:
    """The path or URL of a file, which shells complete."""
    return word


def add_text_field(parser: argparse.ArgumentParser) -> None:
    """Declare the option that names the field of raw text."""
    parser.add_argument(
        "--text-field",
        metavar="NAME",
        help="field or column of the text in JSON lines, Parquet and saved data sets (default: text; caption in "
        "lines of images)",
    )


def add_exported(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a checkpoint that is exported: it, the new folder, and where its dictionaries are."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the checkpoint")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    add_dictionaries(parser)


def add_dictionaries(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say where the dictionaries and the SentencePiece model of a checkpoint are."""
    parser.add_argument("--data", type=Path, help="folder of the dictionaries (default: that of the training)")
    parser.add_argument(
        "--sentencepiece",
        type=Path,
        help="SentencePiece model, tokenizer.json or tiktoken file (default: that of the training or in that folder)",
    )


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Declare the options of --task pretraining that say how its data is read."""
    parser.add_argument(
        "--text-field",
        default="text",
        metavar="NAME",
        help="field or column of the text, as --task pretraining has it (default: text)",
    )
    add_tokenizer(parser)


def add_tokenizer(parser: argparse.ArgumentParser, *, trained: bool = False) -> None:
    """Declare the option that names a tokenizer. The model is ``trained`` if a checkpoint names its tokenizer."""
    default = "that of the training, or else the one" if trained else "the one"
    parser.add_argument(
        "--tokenizer-file",
        metavar="FILE",
        help=f"SentencePiece model, tokenizer.json or tiktoken file (default: {default} in the data directory)",
    )
