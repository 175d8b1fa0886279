"""Products of one input with several weights whose gradients of the input are summed as they are multiplied.

torch writes one gradient of the input for each weight and adds them up afterwards, one by one.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def projections(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """``F.linear`` of an input with each weight.

    Args:
        x: (..., width).
        weights: each (any width, width), of the input's dtype.
    """
    return _Projections.apply(x, *weights)  # type: ignore[no-untyped-call]


class _Projections(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        rows, shape = _rows(x), x.shape[:-1]
        return tuple(torch.mm(rows, weight.t()).view(*shape, weight.size(0)) for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        x_needed, *needed = ctx.needs_input_grad
        rows, of_x, of_weights = _rows(x), None, []
        for gradient, weight, weight_needed in zip(map(_rows, gradients), weights, needed, strict=True):
            of_weights.append(torch.mm(gradient.t(), rows) if weight_needed else None)
            if x_needed:
                of_x = torch.mm(gradient, weight) if of_x is None else of_x.addmm_(gradient, weight)
        return None if of_x is None else of_x.view(x.shape), *of_weights


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.size(-1))
