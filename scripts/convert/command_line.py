"""The command line that the converters share: what is read, and what is written."""

import argparse
from pathlib import Path


def converter_parser(
    program: str, documentation: str, *, input_help: str = "the checkpoint", output_help: str
) -> argparse.ArgumentParser:
    """A parser of IN and OUT, to which a converter adds its options.

    Args:
        program: the converter's file.
        documentation: its docstring, whose first paragraph is the summary.
        input_help, output_help: what IN and OUT are.
    """
    summary, _, details = documentation.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog=program,
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("input", type=Path, metavar="IN", help=input_help)
    parser.add_argument("output", type=Path, metavar="OUT", help=output_help)
    return parser
