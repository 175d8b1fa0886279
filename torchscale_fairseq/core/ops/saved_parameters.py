"""Parameters that autograd functions of this package save."""

from typing import Any

import torch
from torch import Tensor


def as_result(parameter: Tensor, gradient_divisor: float = 1) -> Tensor:
    """A parameter as the result of an operation. torch 2.6 passes over the hooks of one that a function itself saves,
    while its layer is recomputed (``torch.utils.checkpoint``).

    Args:
        parameter: any.
        gradient_divisor: its gradient is divided by this.
    """
    if gradient_divisor == 1:
        return parameter.view_as(parameter)
    result: Tensor = _DivideGradient.apply(parameter, gradient_divisor)  # type: ignore[no-untyped-call]
    return result


class _DivideGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, divisor: float) -> Tensor:
        ctx.divisor = divisor
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.divisor, None
