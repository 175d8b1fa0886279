"""Says which architectures have an option that the chosen one lacks."""

import argparse
import dataclasses
import re
from collections.abc import Callable
from typing import Any

from fairseq import options
from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY

from .patching import replace


def apply() -> None:
    """Let the error of fairseq's command line about an unknown option end with the architectures that know it."""
    replace(options, "parse_args_and_arch", _with_hint)


def _with_hint(stock: Callable[..., Any]) -> Callable[..., Any]:
    def parse_args_and_arch(parser: argparse.ArgumentParser, *arguments: Any, **more: Any) -> Any:
        error = parser.error
        parser.error = lambda message: error(message + hint(message))  # type: ignore[method-assign]
        return stock(parser, *arguments, **more)

    return parse_args_and_arch


def hint(message: str) -> str:
    """What to add to a message of argparse."""
    if not message.startswith("unrecognized arguments"):
        return ""
    flags_of: dict[str, list[str]] = {}
    for flag in dict.fromkeys(re.findall(r"--[a-z][\w-]*", message)):
        names = ", ".join(_architectures_with(flag.removeprefix("--").replace("-", "_")))
        if names:
            flags_of.setdefault(names, []).append(flag)
    lines = [
        f"\n{' and '.join(flags)}: for --arch {names}; the --arch of this command has no such option."
        for names, flags in flags_of.items()
    ]
    return "".join(lines)


def _architectures_with(option: str) -> list[str]:
    """Ours that have it, without their sizes; first those that are made with it."""
    ours = [name for name, model in MODEL_REGISTRY.items() if model.__module__.startswith("torchscale_fairseq.")]
    having = {
        name
        for name in ours
        if option in {f.name for f in dataclasses.fields(MODEL_DATACLASS_REGISTRY[name])}
        and not any(name.startswith(f"{family}_") for family in ours)
    }
    return sorted(having, key=lambda name: (option not in MODEL_REGISTRY[name].preset, name))
