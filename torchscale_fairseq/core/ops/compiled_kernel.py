"""Functions that start kernels, as operations that torch.compile leaves alone."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


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

        name = f"torchscale_fairseq::{function.__name__}"
        operator = torch.library.custom_op(name, start, mutates_args=mutates)
        operator.register_fake(fake)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            return operator(*arguments) if torch.compiler.is_compiling() else start(*arguments)

        return call  # type: ignore[return-value]

    return decorate
