"""Taking tokens to the rows of their experts and back, by one kernel each way, without counts on the host."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .gelu_norm import TRITON
from .grouped_products import has_grouped_kernel
from .routing import Choices

if TRITON:
    from . import expert_rows_kernels as kernels


@dataclass(frozen=True)
class Places:
    """Where kept choices stand among the rows of the experts."""

    row: Tensor
    """(tokens, k) int32, the row of each choice; -1 for choices that are not kept."""
    choice: Tensor
    """(rows,) int32, the choice in each row, as an index into the flattened ``row``; -1 for rows without one, which
    come last."""

    @classmethod
    def of(cls, choices: Choices) -> "Places":
        """The places of choices, with as many rows as they can fill."""
        row = choices.row
        flat = row.reshape(-1).long()
        choice = row.new_full((choices.most + 1,), -1)  # the last one for choices that are not kept
        numbers = torch.arange(flat.numel(), dtype=torch.int32, device=row.device)
        choice.scatter_(0, torch.where(flat < 0, choices.most, flat), numbers)
        return cls(row, choice[: choices.most])


def take_rows(tokens: Tensor, places: Places, gradient_divisor: float) -> Tensor:
    """Take tokens to their experts.

    Args:
        tokens: (tokens, width).
        places: where their choices stand.
        gradient_divisor: that of ``mix_rows``, by which the gradient of tokens is multiplied again.

    Returns:
        (rows, width), the token of each row; zeros in rows without one.
    """
    arguments = tokens.contiguous(), places.row, places.choice, gradient_divisor
    result: Tensor = _Take.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def mix_rows(rows: Tensor, gate: Tensor, places: Places, gradient_divisor: float) -> Tensor:
    """Take rows back to their tokens. Sums are taken in float32.

    Args:
        rows: (rows, width). Those without a choice may hold anything.
        gate: (tokens, k), the weights of a token's rows.
        places: where choices stand.
        gradient_divisor: the gradient of rows is divided by it, and so are those of all parameters between
            ``take_rows`` and here.

    Returns:
        (tokens, width), the weighted sum of each token's rows.
    """
    arguments = rows.contiguous(), gate.contiguous(), places.row, places.choice, gradient_divisor
    result: Tensor = _Mix.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def rows_refusal(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why tokens cannot be taken to their experts without waiting for the device; None if they can."""
    if not TRITON:
        return "needs Triton"
    if device.type != "cuda":
        return "needs tokens on a GPU"
    if torch.is_autocast_enabled("cuda"):
        return "does not serve autocast"
    if not has_grouped_kernel(dtype, device):
        return f"needs bf16, Hopper or later and torch's grouped_mm, not {dtype}"
    return None


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, row: Tensor, choice: Tensor, gradient_divisor: float) -> Tensor:
        ctx.save_for_backward(row)
        ctx.factor = gradient_divisor
        return kernels.take(tokens, choice, row.size(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (row,) = ctx.saved_tensors
        return kernels.add(gradient.contiguous(), row, None, ctx.factor), None, None, None


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, gate: Tensor, row: Tensor, choice: Tensor, gradient_divisor: float) -> Tensor:
        ctx.save_for_backward(rows, gate, choice)
        ctx.factor = 1 / gradient_divisor
        return kernels.add(rows, row, gate, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        rows, gate, choice = ctx.saved_tensors
        into_rows, into_gate = kernels.add_backward(gradient.contiguous(), rows, gate, choice, ctx.factor)
        return into_rows, into_gate, None, None, None
