"""Print the path to give to fairseq as --user-dir. fairseq finds an installed package by its name alone,
--user-dir torchscale_fairseq; the path serves a checkout that is not installed."""

import argparse

from torchscale_fairseq.plugin import user_dir

EXAMPLE = "torchscale-fairseq user-dir"


def add_options(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(options: argparse.Namespace) -> None:
    print(user_dir())
