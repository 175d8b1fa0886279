"""How a function or class of fairseq is replaced, wherever it has already been imported by name."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from torchscale_fairseq.hooks import running

_REPLACED = "_torchscale_fairseq_replaced"


@dataclass(frozen=True)
class Patch:
    """A replacement of a function or class.

    Args:
        owner: the module or class that has it. A command's name, such as ``"train"``, stands for the module of that
            command; where another command runs, nothing is replaced.
        name: of the function, method, property or class.
        wrapper: gets stock's, and returns what replaces it: stock's own where that is sound.
        why: in a few words.
        failure: what stock shows the user, as docs/stock_repairs.md has it; empty if this is no repair.
        when: nothing is replaced where this returns False.
    """

    owner: ModuleType | type | str
    name: str
    wrapper: Callable[[Any], Any]
    why: str
    failure: str = ""
    when: Callable[[], bool] = lambda: True

    @property
    def repair(self) -> str:
        """The wrapper's name."""
        return name_of(self.wrapper)

    def apply(self) -> None:
        """Put the replacement in place. Does nothing the second time."""
        owner = running.command(self.owner) if isinstance(self.owner, str) else self.owner
        if owner is not None and self.when():
            replace(owner, self.name, self.wrapper)


@dataclass(frozen=True)
class Setting:
    """A change that replaces no function.

    Args:
        change: makes it; a second call does nothing more.
        why, failure: as for ``Patch``.
    """

    change: Callable[[], None]
    why: str
    failure: str = ""

    @property
    def repair(self) -> str:
        """The function's name."""
        return name_of(self.change)

    def apply(self) -> None:
        """Make the change."""
        self.change()


def replace(owner: ModuleType | type | dict[str, Any], name: str, wrapper: Callable[[Any], Any]) -> None:
    """Put ``wrapper(stock)`` in place of ``owner.name`` and, if the owner is a module, of every reference to it that a
    module of fairseq (or the program being run) holds. Does nothing if ``wrapper`` returns what it was given, or the
    second time for the same ``wrapper``, or if a module has no such name.

    Args:
        owner: module, a module's globals, or class.
        name: of a function, class or method. A class method or static method stays one, and of a property the getter
            is replaced; an attribute that a class lacks is added.
        wrapper: gets the plain function or class, or None for an attribute that is not there.
    """
    if isinstance(owner, type):
        stock = inspect.getattr_static(owner, name, None)
        replaced = _wrapped(stock, wrapper)
        if replaced is not stock:
            setattr(owner, name, replaced)
        return
    stock = (owner if isinstance(owner, dict) else vars(owner)).get(name)
    replaced = None if stock is None else _wrapped(stock, wrapper)
    if replaced is stock:
        return
    for namespace in running.namespaces():
        for known_as in [key for key, value in namespace.items() if value is stock]:
            namespace[known_as] = replaced


def _wrapped(stock: Any, wrapper: Callable[[Any], Any]) -> Any:
    if isinstance(stock, (classmethod, staticmethod)):
        inner = _wrapped(stock.__func__, wrapper)
        return stock if inner is stock.__func__ else type(stock)(inner)
    if isinstance(stock, property):
        getter = _wrapped(stock.fget, wrapper)
        return stock if getter is stock.fget else property(getter, stock.fset)
    key, done = name_of(wrapper), replaced_by(stock)
    replaced = stock if key in done else wrapper(stock)
    if replaced is not stock and isinstance(replaced, FunctionType | type):
        if not isinstance(replaced, type):
            functools.update_wrapper(replaced, stock)
        setattr(replaced, _REPLACED, done | {key})
    return replaced


def replaced_by(stock: Any) -> frozenset[str]:
    """The names of the wrappers that a function or class went through."""
    found: frozenset[str] = getattr(stock, _REPLACED, frozenset())
    return found


def name_of(wrapper: Callable[..., Any]) -> str:
    """The name of a function, also where some of its arguments are given already."""
    return str((wrapper.func if isinstance(wrapper, functools.partial) else wrapper).__name__)
