"""Implementations of an operation, and the one way to choose among them.

A backend is an object with a name, a refusal of what it cannot serve, and the operation itself. Each operation has one
list of its backends; options take their names from it.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, Protocol, TypeVar, overload

import torch

from ..option_error import OptionError, not_among

logger = logging.getLogger(__name__)

AUTO = "auto"
"""In place of a name: the first backend that serves the request."""

RequestT_contra = TypeVar("RequestT_contra", contravariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)


class Backend(Protocol[RequestT_contra, ResultT_co]):
    """One implementation. What needs a backward pass of its own has further methods."""

    @property
    def name(self) -> str:
        """As options and logs have it."""

    def refusal(self, request: RequestT_contra) -> str | None:
        """Why it cannot serve a request, as the rest of a sentence that begins with its name; None if it can."""

    def run(self, request: RequestT_contra) -> ResultT_co:
        """The operation."""


BackendT = TypeVar("BackendT", bound=Backend[Any, Any])


def choose(
    backends: Sequence[BackendT],
    request: Any,
    wanted: str = AUTO,
    *,
    option: str = "",
    instead: str = "",
    explain: bool = False,
) -> BackendT:
    """The backend that serves a request.

    Args:
        backends: in order of preference.
        request: what is to be computed.
        wanted: a name, or ``AUTO``.
        option: which names one; the choice is logged once per backend. Empty where there is no option.
        instead: a name to suggest where one is refused; without it, the first of the others that serves the request.
        explain: the log says why backends before the chosen one were not taken.

    Raises:
        OptionError: no backend has this name, or it cannot serve the request.
    """
    refusals: dict[str, str] = {}
    for backend in backends:
        if wanted not in (AUTO, backend.name):
            continue
        refusal = backend.refusal(request)
        if refusal is None:
            if option and not torch.compiler.is_compiling():
                log_choice(option, backend.name, tuple(refusals.items()) if explain else ())
            return backend
        refusals[backend.name] = refusal
    if not refusals:
        raise not_among(option, wanted, [backend.name for backend in backends])
    name, refusal = next(iter(refusals.items()))
    others = [instead] if instead else [other.name for other in backends if other.refusal(request) is None]
    if torch.compiler.is_compiling():  # torch 2.11 cannot trace the raising of an error of our own
        from .uncompiled import run_uncompiled

        run_uncompiled(_refuse, option, name, refusal, others[:1])
    return _refuse(option, name, refusal, others[:1])


def _refuse(option: str, name: str, refusal: str, others: Sequence[str]) -> NoReturn:
    raise OptionError(option, name, f"{{{option}=}} {refusal}", [{option: other} for other in others])


@functools.cache
def log_choice(option: str, name: str, refusals: tuple[tuple[str, str], ...]) -> None:
    """Log a choice, once, with why others before it were not taken."""
    reasons = "; ".join(f"{other} {refusal}" for other, refusal in refusals)
    logger.info("%s: %s%s", option.replace("_", " "), name, f" ({reasons})" if reasons else "")


class Names(Sequence[str]):
    """The names of a list of backends, as they are when they are read; an option's choices.

    Args:
        backends: the list.
        first: names before theirs, such as ``AUTO``.
    """

    def __init__(self, backends: Sequence[Backend[Any, Any]], *first: str):
        self._backends, self._first = backends, first

    def _names(self) -> list[str]:
        return [*self._first, *(backend.name for backend in self._backends)]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._names()[index]

    def __len__(self) -> int:
        return len(self._names())

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())
