"""Every subcommand of torchscale-fairseq."""

from collections.abc import Iterator

from torchscale_fairseq.tools.command import SubcommandParser, make_parser


def parsers(parser: SubcommandParser) -> Iterator[SubcommandParser]:
    """A parser and all parsers of its subcommands."""
    parser.load()
    yield parser
    for subcommand in parser.subcommands.values():
        yield from parsers(subcommand)


ALL = [parser.prog.split()[1:] for parser in parsers(make_parser())]
