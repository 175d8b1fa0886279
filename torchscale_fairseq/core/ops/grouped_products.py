"""Matrix products group by group, in three ways that agree: a loop, torch's grouped kernel, one batched product."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import choose
from .segments import Segments

ALIGNMENT = 16
"""Bytes that rows must be a multiple of for torch's grouped kernel."""
FILLED = 0.5
"""Least share of real rows for which groups are filled up to one size."""


class ProductRequest(NamedTuple):
    """Rows (rows, a) by matrices (groups, a, b), plus biases (groups, b)."""

    rows: Tensor
    matrices: Tensor
    bias: Tensor | None
    segments: Segments


@dataclass(frozen=True)
class Products:
    """A way to multiply group by group, a ``Backend`` of ``ProductRequest``."""

    name: str
    refusal: Callable[[ProductRequest], str | None]
    rows: Callable[[Tensor, Tensor, Tensor | None, Segments], Tensor]
    """(rows, a) by (groups, a, b), plus (groups, b): (rows, b)."""
    outer: Callable[[Tensor, Tensor, Segments], Tensor]
    """(rows, a) transposed by (rows, b): (groups, a, b), zero for a group without rows."""
    sums: Callable[[Tensor, Segments], Tensor]
    """(rows, a) to (groups, a)."""

    def run(self, request: ProductRequest) -> Tensor:
        """(rows, b)."""
        return self.rows(*request)


def products_for(x: Tensor, weight: Tensor, segments: Segments) -> Products:
    """Choose how groups are multiplied. On a GPU: torch's grouped kernel where it serves (bfloat16, Hopper or later),
    or else one batched product unless most of it would be filling. Otherwise, and on the CPU: one product per group."""
    return choose(PRODUCTS, ProductRequest(x, weight, None, segments))


def _loop_rows(x: Tensor, matrices: Tensor, bias: Tensor | None, segments: Segments) -> Tensor:
    result = x.new_empty(x.size(0), matrices.size(2))
    for group, (rows, into) in enumerate(zip(segments.split(x), segments.split(result), strict=True)):
        if bias is None:
            torch.mm(rows, matrices[group], out=into)
        else:
            torch.addmm(bias[group], rows, matrices[group], out=into)
    return result


def _loop_outer(left: Tensor, right: Tensor, segments: Segments) -> Tensor:
    result = left.new_empty(len(segments.sizes), left.size(1), right.size(1))
    for group, (a, b) in enumerate(zip(segments.split(left), segments.split(right), strict=True)):
        torch.mm(a.T, b, out=result[group])
    return result


def _loop_sums(x: Tensor, segments: Segments) -> Tensor:
    return torch.stack([rows.sum(0) for rows in segments.split(x)])


def _kernel_rows(x: Tensor, matrices: Tensor, bias: Tensor | None, segments: Segments) -> Tensor:
    result = grouped_mm(x, matrices, offs=segments.ends)
    return result if bias is None else result + segments.spread(bias)


def _kernel_outer(left: Tensor, right: Tensor, segments: Segments) -> Tensor:
    result: Tensor = grouped_mm(left.T, right, offs=segments.ends)
    empty = [group for group, size in enumerate(segments.sizes) if size == 0]
    if empty:  # which the kernel leaves as they are on some GPUs (pytorch issue 172439)
        result[empty] = 0
    return result


def _batched_rows(x: Tensor, matrices: Tensor, bias: Tensor | None, segments: Segments) -> Tensor:
    filled = segments.filled(x)
    result = torch.bmm(filled, matrices) if bias is None else torch.baddbmm(bias.unsqueeze(1), filled, matrices)
    return result.flatten(0, 1).index_select(0, segments.places)


def _batched_outer(left: Tensor, right: Tensor, segments: Segments) -> Tensor:
    return torch.bmm(segments.filled(left).transpose(1, 2), segments.filled(right))


def sums_by_product(x: Tensor, segments: Segments) -> Tensor:
    """By a matrix product, which adds up in float32 whatever the dtype, and always in the same order."""
    return (segments.groups.unsqueeze(1) == segments.group).to(x.dtype) @ x


grouped_mm: Any = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
"""Public since torch 2.10."""


def _kernel_refusal(request: ProductRequest) -> str | None:
    x = request.rows
    if not x.is_cuda or x.size(0) == 0:
        return "needs rows on a GPU"
    if not has_grouped_kernel(x.dtype, x.device):
        return f"needs bf16, Hopper or later and torch's grouped_mm, not {x.dtype}"
    if any(n * x.element_size() % ALIGNMENT for n in request.matrices.shape[1:]):
        return f"needs rows of a multiple of {ALIGNMENT} bytes"
    return None


def _batched_refusal(request: ProductRequest) -> str | None:
    x, sizes = request.rows, request.segments.sizes
    if not x.is_cuda or x.size(0) == 0:
        return "is slower than a loop on a CPU"
    return "would mostly multiply filling" if FILLED * len(sizes) * max(sizes) > x.size(0) else None


def has_grouped_kernel(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch has one for this GPU; below Hopper it runs a loop under the same name."""
    on_hopper = torch.cuda.get_device_capability(device) >= (9, 0)
    return grouped_mm is not None and dtype == torch.bfloat16 and on_hopper


LOOP = Products("loop", lambda request: None, _loop_rows, _loop_outer, _loop_sums)
KERNEL = Products("grouped kernel", _kernel_refusal, _kernel_rows, _kernel_outer, sums_by_product)
BATCHED = Products("batched", _batched_refusal, _batched_rows, _batched_outer, sums_by_product)
PRODUCTS: list[Products] = [KERNEL, BATCHED, LOOP]
"""In order of preference."""
