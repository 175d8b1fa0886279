"""Operations on rows that belong to groups (experts), each with weights of its own.

Rows of a group are neighbours, groups follow each other; ``sizes`` gives the rows of each.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int]) -> Tensor:
    """``F.linear`` with a weight per group.

    Args:
        x: (rows, in).
        weight: (groups, out, in).
        bias: (groups, out).
        sizes: rows of each group.

    Returns:
        (rows, out).
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if _has_grouped_kernel(x):
        return _by_grouped_kernel(x, weight, bias, sizes)
    result: Tensor = _GroupedLinear.apply(x, weight, bias, tuple(sizes))  # type: ignore[no-untyped-call]
    return result


def grouped_norm(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int], *, eps: float) -> Tensor:
    """LayerNorm, or without bias RMSNorm, of (rows, width) with weight and bias (groups, width)."""
    shape = weight.shape[1:]
    biases = [None] * len(sizes) if bias is None else bias.unbind(0)
    return torch.cat(
        [
            F.rms_norm(rows, shape, w, eps) if b is None else F.layer_norm(rows, shape, w, b, eps)
            for rows, w, b in zip(x.split(list(sizes)), weight.unbind(0), biases, strict=True)
        ]
    )


class _GroupedLinear(torch.autograd.Function):
    """One matrix product per group, written straight into one result; so are the gradients of the weights, which
    slices of a parameter would each return at full size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sizes: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes, ctx.has_bias = sizes, bias is not None
        result = x.new_empty(x.size(0), weight.size(1))
        for group, (rows, into) in enumerate(zip(x.split(list(sizes)), result.split(list(sizes)), strict=True)):
            if bias is None:
                torch.mm(rows, weight[group].T, out=into)
            else:
                torch.addmm(bias[group], rows, weight[group].T, out=into)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        parts = gradient.split(list(ctx.sizes))
        to_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        if to_x is not None:
            for group, into in enumerate(to_x.split(list(ctx.sizes))):
                torch.mm(parts[group], weight[group], out=into)
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        if to_weight is not None:
            for group, rows in enumerate(x.split(list(ctx.sizes))):
                torch.mm(parts[group].T, rows, out=to_weight[group])
        to_bias = torch.stack([part.sum(0) for part in parts]) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return to_x, to_weight, to_bias, None


def _has_grouped_kernel(x: Tensor) -> bool:
    return (
        x.is_cuda
        and x.dtype == torch.bfloat16
        and hasattr(F, "grouped_mm")
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
    )


def _by_grouped_kernel(x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int]) -> Tensor:
    """The same by one kernel of torch for all groups."""
    counts = torch.tensor(sizes, device=x.device)
    ends = counts.cumsum(0, dtype=torch.int32)
    result = F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    return result if bias is None else result + bias.repeat_interleave(counts, 0, output_size=x.size(0))
