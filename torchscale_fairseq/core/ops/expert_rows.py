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


def take_rows(tokens: Tensor, places: Places) -> Tensor:
    """(tokens, width) to (rows, width), the token of each row; zeros in rows without one."""
    result: Tensor = _Take.apply(tokens.contiguous(), places.row, places.choice)  # type: ignore[no-untyped-call]
    return result


def mix_rows(rows: Tensor, gate: Tensor, places: Places) -> Tensor:
    """(rows, width) to (tokens, width), the sum of each token's rows with the weights gate (tokens, k).

    Rows without a choice may hold anything. Sums are taken in float32.
    """
    arguments = rows.contiguous(), gate.contiguous(), places.row, places.choice
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
    def forward(ctx: Any, tokens: Tensor, row: Tensor, choice: Tensor) -> Tensor:
        ctx.save_for_backward(row)
        return kernels.take(tokens, choice, row.size(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (row,) = ctx.saved_tensors
        return kernels.add(gradient.contiguous(), row, None), None, None


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, gate: Tensor, row: Tensor, choice: Tensor) -> Tensor:
        ctx.save_for_backward(rows, gate, choice)
        return kernels.add(rows, row, gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *kernels.add_backward(gradient.contiguous(), *ctx.saved_tensors), None, None
