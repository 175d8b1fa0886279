"""Functions that start kernels, as operations that torch.compile leaves alone."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

LISTS = {list[int]: typing.List[int], list[Tensor]: typing.List[Tensor]}  # noqa: UP006 - all that torch 2.6 knows
"""Types of arguments and results, by the names that they have elsewhere."""


def compiled_kernel(fake: Callable[..., Any], mutates: tuple[str, ...] = ()) -> Callable[[FunctionT], FunctionT]:
    """Decorate a function with the custom operator that compiled code calls instead of it, on its first argument's GPU.

    Other code calls the function itself, since an operator costs the host about as much time as three kernels.

    Args:
        fake: the operator's results without values, from the same arguments.
        mutates: names of the arguments that it changes.
    """

    def decorate(function: FunctionT) -> FunctionT:
        @functools.wraps(function)
        def start(*arguments: Any) -> Any:
            with torch.cuda.device_of(arguments[0]):
                return function(*arguments)

        start.__signature__ = _with_known_types(function)  # type: ignore[attr-defined]
        name = f"torchscale_fairseq::{function.__name__}"
        operator = torch.library.custom_op(name, start, mutates_args=mutates)
        operator.register_fake(fake)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            return operator(*arguments) if torch.compiler.is_compiling() else start(*arguments)

        return call  # type: ignore[return-value]

    return decorate


def _with_known_types(function: Callable[..., Any]) -> inspect.Signature:
    """A function's signature, from which torch infers that of the operator."""
    signature = inspect.signature(function)
    arguments = [part.replace(annotation=_known(part.annotation)) for part in signature.parameters.values()]
    return signature.replace(parameters=arguments, return_annotation=_known(signature.return_annotation))


def _known(annotation: Any) -> Any:
    return LISTS.get(annotation, annotation)
