"""What the scripts share that draw images to try a task on: options, and a folder for each split."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory_atomically


def drawing_parser(
    program: str, documentation: str, *, train: int, valid: int, img_size: int
) -> argparse.ArgumentParser:
    """A parser, with defaults, to which a script adds its options.

    Args:
        program: the script's file.
        documentation: its docstring.
        train, valid: images.
        img_size: pixels of a side.
    """
    parser = argparse.ArgumentParser(
        prog=program, description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, metavar="DIR", help="a directory that does not exist yet")
    for option, default, meaning in (
        ("--train", train, "training images"),
        ("--valid", valid, "validation images"),
        ("--img-size", img_size, "pixels of a side"),
        ("--seed", 1, "of the drawings"),
    ):
        parser.add_argument(option, type=int, default=default, metavar="N", help=f"{meaning}; default {default}")
    return parser


def write_splits(program: str, options: argparse.Namespace, write: Callable[[Path, int], None]) -> int:
    """Fill the folders train and valid, each with as many images as asked for; the exit status of the program."""
    try:
        with make_directory_atomically(options.output) as made:
            for split, count in (("train", options.train), ("valid", options.valid)):
                (made / split).mkdir()
                write(made / split, count)
    except (InputError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.train} and {options.valid} images to {options.output}")
    return 0
