"""Matrix products group by group, in three ways that agree: a loop, torch's grouped kernel, one batched product.

Rows of a group are neighbours, groups follow each other; ``sizes`` gives the rows of each.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNMENT = 16
"""Bytes that rows must be a multiple of for torch's grouped kernel."""
FILLED = 0.5
"""Least share of real rows for which groups are filled up to one size."""


class Products(NamedTuple):
    """A way to multiply group by group."""

    rows: Callable[[Tensor, Tensor, Tensor | None, Sequence[int]], Tensor]
    """(rows, a) by (groups, a, b), plus (groups, b): (rows, b)."""
    outer: Callable[[Tensor, Tensor, Sequence[int]], Tensor]
    """(rows, a) transposed by (rows, b): (groups, a, b), zero for a group without rows."""
    sums: Callable[[Tensor, Sequence[int]], Tensor]
    """(rows, a) to (groups, a)."""


def products_for(x: Tensor, weight: Tensor, sizes: Sequence[int]) -> Products:
    """On a GPU torch's grouped kernel where it serves (bfloat16, Hopper or later), else one batched product unless that
    would mostly multiply filling; otherwise, and on the CPU, one product per group."""
    if not x.is_cuda or x.size(0) == 0:
        return LOOP
    if _has_grouped_kernel(x) and all(n * x.element_size() % ALIGNMENT == 0 for n in weight.shape[1:]):
        return KERNEL
    return BATCHED if FILLED * len(sizes) * max(sizes) <= x.size(0) else LOOP


def _loop_rows(x: Tensor, matrices: Tensor, bias: Tensor | None, sizes: Sequence[int]) -> Tensor:
    result = x.new_empty(x.size(0), matrices.size(2))
    for group, (rows, into) in enumerate(zip(x.split(list(sizes)), result.split(list(sizes)), strict=True)):
        if bias is None:
            torch.mm(rows, matrices[group], out=into)
        else:
            torch.addmm(bias[group], rows, matrices[group], out=into)
    return result


def _loop_outer(left: Tensor, right: Tensor, sizes: Sequence[int]) -> Tensor:
    result = left.new_empty(len(sizes), left.size(1), right.size(1))
    for group, (a, b) in enumerate(zip(left.split(list(sizes)), right.split(list(sizes)), strict=True)):
        torch.mm(a.T, b, out=result[group])
    return result


def _loop_sums(x: Tensor, sizes: Sequence[int]) -> Tensor:
    return torch.stack([rows.sum(0) for rows in x.split(list(sizes))])


def _kernel_rows(x: Tensor, matrices: Tensor, bias: Tensor | None, sizes: Sequence[int]) -> Tensor:
    result = _grouped_mm(x, matrices, offs=_ends(sizes, x.device))
    return result if bias is None else result + of_rows(bias, sizes)


def _kernel_outer(left: Tensor, right: Tensor, sizes: Sequence[int]) -> Tensor:
    result: Tensor = _grouped_mm(left.T, right, offs=_ends(sizes, left.device))
    empty = [group for group, size in enumerate(sizes) if size == 0]
    if empty:  # which the kernel leaves as they are on some GPUs (pytorch issue 172439)
        result[empty] = 0
    return result


def _batched_rows(x: Tensor, matrices: Tensor, bias: Tensor | None, sizes: Sequence[int]) -> Tensor:
    filled, places = _filled(x, sizes)
    result = torch.bmm(filled, matrices) if bias is None else torch.baddbmm(bias.unsqueeze(1), filled, matrices)
    return result.flatten(0, 1).index_select(0, places)


def _batched_outer(left: Tensor, right: Tensor, sizes: Sequence[int]) -> Tensor:
    return torch.bmm(_filled(left, sizes)[0].transpose(1, 2), _filled(right, sizes)[0])


def sums_by_product(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """By a matrix product, which adds up in float32 whatever the dtype, and always in the same order."""
    groups = torch.arange(len(sizes), device=x.device).unsqueeze(1)
    return (groups == _group_of_rows(sizes, x.device)).to(x.dtype) @ x


LOOP = Products(_loop_rows, _loop_outer, _loop_sums)
KERNEL = Products(_kernel_rows, _kernel_outer, sums_by_product)
BATCHED = Products(_batched_rows, _batched_outer, sums_by_product)

_grouped_mm: Any = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
"""Public since torch 2.10."""


def _has_grouped_kernel(x: Tensor) -> bool:
    """Below Hopper torch runs a loop under the same name."""
    on_hopper = torch.cuda.get_device_capability(x.device) >= (9, 0)
    return _grouped_mm is not None and x.dtype == torch.bfloat16 and on_hopper


def _filled(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(groups, rows of the largest, a), with zeros behind each group's rows, and where the rows are in it."""
    most, counts = max(sizes), torch.tensor(sizes, device=x.device)
    group = _group_of_rows(sizes, x.device)
    places = torch.arange(x.size(0), device=x.device) + (group * most - (counts.cumsum(0) - counts)[group])
    filled = x.new_zeros(len(sizes) * most, x.size(1)).index_copy(0, places, x)
    return filled.view(len(sizes), most, x.size(1)), places


def of_rows(parameter: Tensor, sizes: Sequence[int]) -> Tensor:
    """(groups, a) to (rows, a)."""
    return parameter.index_select(0, _group_of_rows(sizes, parameter.device))


def _group_of_rows(sizes: Sequence[int], device: torch.device) -> Tensor:
    counts = torch.tensor(sizes, device=device)
    return torch.arange(len(sizes), device=device).repeat_interleave(counts, output_size=sum(sizes))


def _ends(sizes: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(sizes, device=device).cumsum(0, dtype=torch.int32)
