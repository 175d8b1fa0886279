"""Images that are drawn to try a task on: the options of their subcommands, and a folder for each split."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from torchscale_fairseq.core.files import make_directory_atomically
from torchscale_fairseq.tools.options import positive
from torchscale_fairseq.tools.progress import progress


def add_drawing_options(parser: argparse.ArgumentParser, *, train: int, valid: int, img_size: int) -> None:
    """Declare the options that all of them have.

    Args:
        parser: of the subcommand.
        train, valid: default numbers of images.
        img_size: default pixels of a side.
    """
    parser.add_argument("output", type=Path, metavar="DIR", help="the directory to make")
    for option, default, meaning in (
        ("--train", train, "images to train on"),
        ("--valid", valid, "images to validate on"),
        ("--img-size", img_size, "width and height in pixels"),
    ):
        parser.add_argument(option, type=positive, default=default, metavar="N", help=f"{meaning} (default: {default})")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="decides what is drawn (default: 1)")


def draw_splits(options: argparse.Namespace, write: Callable[[Path, Iterable[int]], None]) -> None:
    """Fill the folders train and valid, whole or not at all.

    Args:
        options: of ``add_drawing_options``.
        write: fills a folder with the images of the given numbers.
    """
    with make_directory_atomically(options.output) as made:
        for split, count in (("train", options.train), ("valid", options.valid)):
            (made / split).mkdir()
            write(made / split, progress(range(count), f"drawing {split}", "image"))
    print(f"wrote {options.train} and {options.valid} images to {options.output}")
