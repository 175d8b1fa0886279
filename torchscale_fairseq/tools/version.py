"""Print the version of this package."""

import argparse

from torchscale_fairseq import __version__

EXAMPLE = "torchscale-fairseq version"


def add_options(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(options: argparse.Namespace) -> None:
    print(f"torchscale-fairseq {__version__}")
