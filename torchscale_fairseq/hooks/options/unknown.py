"""Errors of fairseq's command line in one sentence, with the architectures that know an unknown option."""

import argparse
import ast
import dataclasses
import re
from collections.abc import Callable
from typing import Any, NoReturn

from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY

from torchscale_fairseq.core.errors import did_you_mean, joined, nearest
from torchscale_fairseq.hooks.contracts import HasPreset
from torchscale_fairseq.hooks.options.surfaces import flag_of

MOST_CHOICES = 20
"""More are not listed in an error."""


def name_what_is_near(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.options.parse_args_and_arch`` whose errors name the nearest choice, or the architectures that have an
    option, without the usage of all options."""

    def parse_args_and_arch(parser: argparse.ArgumentParser, *arguments: Any, **more: Any) -> Any:
        def error(message: str) -> NoReturn:
            flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
            parser.exit(2, f"{parser.prog}: error: {message}{hint(message, flags)}\n")

        parser.error = error  # type: ignore[method-assign]
        parser._check_value = check_value  # type: ignore[method-assign]
        return stock(parser, *arguments, **more)

    return parse_args_and_arch


def check_value(action: argparse.Action, value: Any) -> None:
    """Refuse a value that is not among an option's choices, as argparse does, without listing many of them.

    Raises:
        ArgumentError: it is not.
    """
    if action.choices is None or value in action.choices:
        return
    names = sorted(map(str, action.choices))
    listed = f"; choose from {', '.join(names)}" if len(names) <= MOST_CHOICES else "; --help lists all"
    raise argparse.ArgumentError(action, f"there is no {value!r}{did_you_mean(str(value), names) or listed}")


def hint(message: str, known: list[str]) -> str:
    """Sentences to add to a message of argparse.

    Args:
        message: argparse's.
        known: the flags that it knows.
    """
    if not message.startswith("unrecognized arguments"):
        return ""
    flags_of: dict[str, list[str]] = {}
    near: list[str] = []
    for flag in dict.fromkeys(re.findall(r"--[a-z][\w-]*", message)):
        names = ", ".join(_architectures_with(flag.removeprefix("--").replace("-", "_")))
        if names:
            flags_of.setdefault(names, []).append(flag)
        else:
            near += _nearest_flags(flag, known)
    end = "." if "--path" in known else "; the --arch of this command has no such option."
    lines = [f"\n{' and '.join(flags)}: for --arch {names}{end}" for names, flags in flags_of.items()]
    if lines and "--path" in known:
        lines.append(_instead(message, [flag for flags in flags_of.values() for flag in flags]))
    question = f"; did you mean {joined(list(dict.fromkeys(near)), 'or')}?" if near else ""
    return "".join([question, *lines])


def _instead(message: str, flags: list[str]) -> str:
    """The line on options of architectures for a command that takes the architecture from a checkpoint."""
    overrides = {flag.removeprefix("--").replace("-", "_"): _value(message, flag) for flag in flags}
    return (
        f'\nThe checkpoint holds the options of its architecture; to change them, give --model-overrides "{overrides}".'
    )


def _value(message: str, flag: str) -> Any:
    """The value of a flag among the words that argparse does not know, as Python writes it; True for a switch."""
    found = re.search(rf"{flag}(?:=| +(?!--))(\S+)", message)
    if found is None:
        return True
    try:
        return ast.literal_eval(found[1])
    except (SyntaxError, ValueError):
        return found[1]


def _nearest_flags(flag: str, known: list[str]) -> list[str]:
    names = [other.removeprefix("--").replace("-", "_") for other in known]
    return [flag_of(name) for name in nearest(flag.removeprefix("--").replace("-", "_"), names)]


def _architectures_with(option: str) -> list[str]:
    """Ours that have it, without their sizes; first those that are made with it."""
    ours = {
        name: model
        for name, model in MODEL_REGISTRY.items()
        if model.__module__.startswith("torchscale_fairseq.") and isinstance(model, HasPreset)
    }
    having = {
        name
        for name in ours
        if option in {f.name for f in dataclasses.fields(MODEL_DATACLASS_REGISTRY[name])}
        and not any(name.startswith(f"{family}_") for family in ours)
    }
    return sorted(having, key=lambda name: (option not in ours[name].preset, name))
