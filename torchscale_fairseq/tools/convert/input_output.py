"""The two arguments that every conversion has."""

import argparse
from pathlib import Path


def add_input_and_output(parser: argparse.ArgumentParser, input_help: str, output_help: str) -> None:
    """Declare IN and OUT.

    Args:
        parser: of the subcommand.
        input_help, output_help: what they are.
    """
    parser.add_argument("input", type=Path, metavar="IN", help=input_help)
    parser.add_argument("output", type=Path, metavar="OUT", help=output_help)
