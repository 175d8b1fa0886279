"""The command ``torchscale-fairseq``: its parser, and the start and the end of every subcommand."""

import argparse
import functools
import importlib
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

from torchscale_fairseq.core.errors import did_you_mean
from torchscale_fairseq.core.reporting import run_command
from torchscale_fairseq.tools.packages import explaining_missing_packages

PROGRAM = "torchscale-fairseq"
ROOT = "torchscale_fairseq.tools"


class Subcommand(Protocol):
    """The module of a subcommand. Its docstring is the description that ``--help`` prints.

    At its top it imports the standard library and light modules of this package alone. ``run`` imports torch, fairseq
    and optional packages, so that ``--help`` comes at once and works without them.
    """

    EXAMPLE: str
    """A command line that works when it is typed where its files are, as the end of ``--help`` prints it."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""

    def run(self, options: argparse.Namespace) -> int | None:
        """Do the work.

        Args:
            options: what was typed, and ``program``, the name to start messages with.

        Returns:
            The exit code; None is 0.

        Raises:
            InputError: the user can mend it; the command ends with the sentence.
        """


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30)


class SubcommandParser(argparse.ArgumentParser):
    """The parser of a subcommand or group, which imports the module when it parses for the first time.

    Args:
        module: the name of the module.
        settings: of ``ArgumentParser``.
    """

    def __init__(self, module: str, **settings: Any):
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **settings)
        self.module = module
        self.subcommands: dict[str, SubcommandParser] = {}
        self.is_loaded = False

    def load(self) -> None:
        """Import the module and declare its options or subcommands, once."""
        if self.is_loaded:
            return
        self.is_loaded = True
        module = importlib.import_module(self.module)
        self.description = module.__doc__
        if hasattr(module, "SUBCOMMANDS"):
            self._add_subcommands(module.SUBCOMMANDS)
        else:
            self._add_options(module)

    def _add_subcommands(self, summaries: dict[str, str]) -> None:
        self.epilog = f"{self.prog} SUBCOMMAND --help explains a subcommand and ends with an example."
        chosen = self.add_subparsers(required=True, metavar="SUBCOMMAND", title="subcommands")
        for name, summary in summaries.items():
            module = f"{self.module}.{name.replace('-', '_')}"
            self.subcommands[name] = chosen.add_parser(name, help=summary, module=module)

    def _add_options(self, subcommand: Subcommand) -> None:
        indented = subcommand.EXAMPLE.replace("\n", "\n  ")
        self.epilog = f"example:\n  {indented}"
        subcommand.add_options(self)
        self.set_defaults(run=subcommand.run, program=self.prog)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, after the module was imported; options that nobody knows end the program here."""
        self.load()
        words = list(sys.argv[1:] if args is None else args)
        if self.subcommands:
            self._check_subcommand(words)
        known, unknown = super().parse_known_args(words, namespace)
        if unknown:
            options = [name for action in self._actions for name in action.option_strings]
            self.error(f"unknown: {' '.join(unknown)}{did_you_mean(unknown[0], options)}")
        return known, unknown

    def _check_subcommand(self, words: Sequence[str]) -> None:
        if not words:
            self.print_help(sys.stderr)
            self.exit(2)
        if not words[0].startswith("-") and words[0] not in self.subcommands:
            self.error(f"no subcommand {words[0]}{did_you_mean(words[0], self.subcommands)} (--help lists all)")


def make_parser() -> SubcommandParser:
    """The parser of the whole command, which has imported no subcommand yet."""
    return SubcommandParser(ROOT, prog=PROGRAM)


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run ``torchscale-fairseq`` and end the process with its exit code.

    Args:
        words: the command line without the program; None: that of the process.
    """
    run_command(functools.partial(_parse_and_run, words))


def _parse_and_run(words: Sequence[str] | None) -> NoReturn:
    try:
        options = make_parser().parse_args(words)
    finally:
        sys.stdout.flush()  # of help, whose reader may have left
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as Ctrl-C, remove what is half written
    run_command(functools.partial(_run, options), options.program)


def _run(options: argparse.Namespace) -> int | None:
    with explaining_missing_packages():
        code: int | None = options.run(options)
    return code
