"""Replacing a function or class of fairseq, wherever it has already been imported by name."""

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_REPLACED = "_torchscale_fairseq_replaced"


def replace(owner: ModuleType | type, name: str, make: Callable[[Any], Any]) -> None:
    """Put ``make(stock)`` in place of ``owner.name`` and, if the owner is a module, of every reference to it that a
    module of fairseq (or the script being run) holds under that name. Does nothing the second time for the same
    ``make``."""
    stock = getattr(owner, name)
    done: frozenset[str] = getattr(stock, _REPLACED, frozenset())
    if make.__qualname__ in done:
        return
    repaired = make(stock)
    if not isinstance(repaired, type):
        repaired = functools.wraps(stock)(repaired)
    setattr(repaired, _REPLACED, done | {make.__qualname__})
    if isinstance(owner, type):
        setattr(owner, name, repaired)
        return
    for holder in list(sys.modules.values()):
        belongs = getattr(holder, "__name__", "").split(".")[0] in {"fairseq", "fairseq_cli", "__main__"}
        if belongs and vars(holder).get(name) is stock:
            setattr(holder, name, repaired)


def running(command: str) -> ModuleType | None:
    """The module of a fairseq command, such as ``"train"``, if this process runs it, as a console script or by
    ``python -m``."""
    name = f"fairseq_cli.{command}"
    main = sys.modules.get("__main__")
    if main is not None and getattr(getattr(main, "__spec__", None), "name", None) == name:
        return main
    return sys.modules.get(name)
