"""--help of fairseq's commands lists the options of the chosen architecture, task, criterion and optimizer as well."""

import argparse
import sys
from collections.abc import Callable
from typing import Any


def list_chosen_options(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.options.parse_args_and_arch``, which reads a command line twice: first to learn which architecture,
    task and optimizer are chosen, then with their options. Now --help waits for the second time."""

    def parse_args_and_arch(parser: argparse.ArgumentParser, *arguments: Any, **more: Any) -> Any:
        parse = parser.parse_known_args

        def first_time(args: list[str] | None = None, namespace: Any = None) -> Any:
            parser.parse_known_args = parse  # type: ignore[method-assign]
            words = sys.argv[1:] if args is None else args
            return parse([word for word in words if word not in ("-h", "--help")], namespace)

        parser.parse_known_args = first_time  # type: ignore[assignment,method-assign]
        return stock(parser, *arguments, **more)

    return parse_args_and_arch
