"""--help of fairseq's commands lists the options of the chosen architecture, task, criterion and optimizer as well, and
the defaults of all options."""

import argparse
import sys
from collections.abc import Callable
from typing import Any


class HelpWithDefaults(argparse.HelpFormatter):
    """Ends the help of an option with its default, unless the text gives it, or it is off or a reference."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help, action.default
        is_hidden = default is None or default is False or default in ("", argparse.SUPPRESS)
        is_hidden = is_hidden or str(default).startswith("${")
        if text and not is_hidden and action.option_strings and "default" not in text:
            return f"{text} (default: %(default)s)"
        return text


def list_chosen_options(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.options.parse_args_and_arch``, which reads a command line twice: first to learn which architecture,
    task and optimizer are chosen, then with their options. Now --help waits for the second time."""

    def parse_args_and_arch(parser: argparse.ArgumentParser, *arguments: Any, **more: Any) -> Any:
        parser.formatter_class = HelpWithDefaults
        parse = parser.parse_known_args

        def first_time(args: list[str] | None = None, namespace: Any = None) -> Any:
            parser.parse_known_args = parse  # type: ignore[method-assign]
            words = sys.argv[1:] if args is None else args
            return parse([word for word in words if word not in ("-h", "--help")], namespace)

        parser.parse_known_args = first_time  # type: ignore[assignment,method-assign]
        return stock(parser, *arguments, **more)

    return parse_args_and_arch
