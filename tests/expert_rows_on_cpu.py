"""Experts on the CPU whose counts of rows are never read, as on a GPU that has the kernels: definitions in their place.

Rows of no expert get NaN wherever a kernel leaves them as they are.
All tensors have one dtype.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchscale_fairseq.core.layers import grouped as layers
from torchscale_fairseq.core.layers import moe
from torchscale_fairseq.core.layers.experts import Experts
from torchscale_fairseq.core.ops import expert_rows, grouped
from torchscale_fairseq.core.ops.segments import Segments


def operator(fake: Callable[..., Any], mutates: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """As ``compiled_kernel`` makes one."""

    def decorate(function: Callable[..., Any]) -> Any:
        made = torch.library.custom_op(f"tests::{function.__name__}", function, mutates_args=mutates)
        made.register_fake(fake)
        return made

    return decorate


@operator(lambda tokens, choice, k: tokens.new_empty(len(choice), tokens.size(1)))
def take(tokens: Tensor, choice: Tensor, k: int) -> Tensor:
    taken = tokens[choice.clamp(min=0).long() // k]
    return torch.where(choice.unsqueeze(1) >= 0, taken, 0)


@operator(lambda rows, row, gate, factor: rows.new_empty(len(row), rows.size(1)))
def add(rows: Tensor, row: Tensor, gate: Tensor | None, factor: float) -> Tensor:
    found = torch.where(row.unsqueeze(2) >= 0, rows[row.clamp(min=0).long()], 0)
    return (found if gate is None else found * gate.unsqueeze(2)).sum(1, dtype=rows.dtype) * factor


@operator(lambda gradient, rows, gate, choice, factor: (torch.empty_like(rows), torch.empty_like(gate)))
def add_backward(gradient: Tensor, rows: Tensor, gate: Tensor, choice: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    is_taken, at = choice >= 0, choice.clamp(min=0).long()
    given = torch.where(is_taken.unsqueeze(1), gradient[at // gate.size(1)], 0)
    along = torch.where(is_taken, (given * rows).nan_to_num().sum(1), 0)
    into_gate = torch.zeros_like(gate).flatten().index_add(0, at, along)
    return given * (gate.flatten()[at] * factor).unsqueeze(1), into_gate.view_as(gate)


def inside(ends: Tensor, rows: int) -> Tensor:
    """(groups, rows), True for the rows of each group."""
    row, starts = torch.arange(rows), torch.cat((ends.new_zeros(1), ends[:-1]))
    return (row >= starts.unsqueeze(1)) & (row < ends.unsqueeze(1))


def grouped_mm(x: Tensor, y: Tensor, *, offs: Tensor) -> Tensor:
    """Rows by a matrix per group, or the sum over each group's rows of outer products."""
    if y.dim() == 2:
        mine = inside(offs, len(y)).unsqueeze(2)
        return torch.where(mine.transpose(1, 2), x, 0) @ torch.where(mine, y, 0)
    mine = inside(offs, len(x)).unsqueeze(2)
    return torch.where(mine.any(0), (torch.where(mine, x, 0) @ y).sum(0), torch.nan)


@operator(lambda rows, bias, group: None, mutates=("rows",))
def add_group_bias(rows: Tensor, bias: Tensor, group: Tensor) -> None:
    rows += bias[group.clamp(max=len(bias) - 1)]


@operator(lambda rows, ends: rows.new_empty(len(ends), rows.size(1)))
def group_sums(rows: Tensor, ends: Tensor) -> Tensor:
    return torch.where(inside(ends, len(rows)).unsqueeze(2), rows, 0).sum(1)


def grouped_norm(x: Tensor, weight: Tensor, bias: Tensor | None, segments: Segments, *, eps: float) -> Tensor:
    normed: Tensor = F.layer_norm(x, weight.shape[1:], eps=eps)
    result: Tensor = grouped._GroupedAffine.apply(normed, *grouped._parameters(weight, bias, segments), segments)
    return result


def keep_counts_on_device(replace: Callable[..., None] = setattr) -> None:
    """Let all experts compute so.

    Args:
        replace: takes an object, the name of a member and another member, which may be a new one.
    """
    replace(moe, "rows_refusal", lambda *_: None)
    replace(Experts, "rows_refusal", lambda _: None)
    replace(expert_rows, "kernels", SimpleNamespace(take=take, add=add, add_backward=add_backward))
    replace(grouped, "grouped_mm", grouped_mm)
    products: Any = SimpleNamespace(
        add_group_bias=add_group_bias, group_sums=group_sums, zero_empty_groups=lambda *_: None
    )
    replace(grouped, "kernels", products)
    replace(layers, "grouped_norm", grouped_norm)
