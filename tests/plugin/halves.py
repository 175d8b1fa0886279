"""An update of parameters in half precision and of their copies in float32, as a kernel makes it on a GPU."""

from collections.abc import Sequence
from typing import Any

import torch


def update_halves(
    halves: Sequence[torch.Tensor],
    copies: Sequence[torch.Tensor],
    averages: Sequence[torch.Tensor],
    squares: Sequence[torch.Tensor],
    rates: Any,
    scale: torch.Tensor | None = None,
    found_inf: torch.Tensor | None = None,
) -> None:
    """What the kernel of ``adam_kernel`` computes on a GPU."""
    if found_inf is not None and found_inf:
        return
    for half, copy, average, square in zip(halves, copies, averages, squares, strict=True):
        assert half.grad is not None
        gradient = half.grad.float().view_as(copy) / (1.0 if scale is None else scale)
        average.lerp_(gradient, 1 - rates.beta1)
        square.lerp_(gradient**2, 1 - rates.beta2)
        copy.mul_(1 - rates.decay).addcdiv_(average, square.sqrt() + rates.eps, value=-rates.step)
        half.copy_(copy.view_as(half))
