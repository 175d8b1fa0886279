"""Operations on rows that belong to groups (experts), each with weights of its own."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .gelu_norm import TRITON
from .grouped_products import Products, grouped_mm, products_for, sums_by_product
from .saved_parameters import as_result
from .segments import Segments

if TRITON:
    from . import grouped_kernels as kernels


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, segments: Segments) -> Tensor:
    """``F.linear`` with a weight per group.

    Args:
        x: (rows, in).
        weight: (groups, out, in).
        bias: (groups, out).
        segments: whose rows they are.

    Returns:
        (rows, out).
    """
    weight, bias = _parameters(weight, bias, segments)
    if segments.rows is not None:
        y: Tensor = _OnDevice.apply(  # type: ignore[no-untyped-call]
            x.contiguous(), weight, bias, segments.ends, segments.group
        )
        return y
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    result: Tensor = _GroupedLinear.apply(  # type: ignore[no-untyped-call]
        x.contiguous(), weight, bias, segments, products_for(x, weight, segments)
    )
    return result


def grouped_norm(x: Tensor, weight: Tensor, bias: Tensor | None, segments: Segments, *, eps: float) -> Tensor:
    """LayerNorm, or without bias RMSNorm, of (rows, width) with weight and bias (groups, width)."""
    shape = weight.shape[1:]
    weight, bias = _parameters(weight, bias, segments)
    if x.is_cuda:  # few kernels in place of several per group
        normed = F.rms_norm(x, shape, None, eps) if bias is None else F.layer_norm(x, shape, eps=eps)
        result: Tensor = _GroupedAffine.apply(normed, weight, bias, segments)  # type: ignore[no-untyped-call]
        return result
    biases = [None] * len(segments.sizes) if bias is None else bias.unbind(0)
    return torch.cat(
        [
            F.rms_norm(rows, shape, w, eps) if b is None else F.layer_norm(rows, shape, w, b, eps)
            for rows, w, b in zip(segments.split(x), weight.unbind(0), biases, strict=True)
        ]
    )


def _parameters(weight: Tensor, bias: Tensor | None, segments: Segments) -> tuple[Tensor, Tensor | None]:
    divisor = segments.gradient_divisor
    return as_result(weight, divisor), None if bias is None else as_result(bias, divisor)


class _GroupedLinear(torch.autograd.Function):
    """Gradients of the weights are written straight into one result; slices of a parameter would each return one of
    full size."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, segments: Segments, products: Products
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.segments, ctx.products, ctx.has_bias = segments, products, bias is not None
        return products.rows(x, weight.transpose(1, 2), bias, segments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        segments, products, gradient = ctx.segments, ctx.products, gradient.contiguous()
        to_x = products.rows(gradient, weight, None, segments) if ctx.needs_input_grad[0] else None
        to_weight = products.outer(gradient, x, segments) if ctx.needs_input_grad[1] else None
        to_bias = products.sums(gradient, segments) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return to_x, to_weight, to_bias, None, None


class _OnDevice(torch.autograd.Function):
    """``_GroupedLinear`` whose counts of rows stay on the device. Rows of no group hold anything in every result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor, group: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, ends)
        ctx.has_bias = bias is not None
        result: Tensor = grouped_mm(x, weight.transpose(1, 2), offs=ends)
        if bias is not None:
            kernels.add_group_bias(result, bias, group)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight, ends = ctx.saved_tensors
        gradient, to_weight = gradient.contiguous(), None
        to_x = grouped_mm(gradient, weight, offs=ends) if ctx.needs_input_grad[0] else None
        if ctx.needs_input_grad[1]:
            to_weight = grouped_mm(gradient.T, x, offs=ends)
            kernels.zero_empty_groups(to_weight, ends)  # which grouped_mm leaves as they are (pytorch issue 172439)
        to_bias = kernels.group_sums(gradient, ends) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return to_x, to_weight, to_bias, None, None


class _GroupedAffine(torch.autograd.Function):
    """Rows times the weight of their group, plus its bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, segments: Segments) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.segments, ctx.has_bias = segments, bias is not None
        scaled = x * segments.spread(weight)
        return scaled if bias is None else scaled + segments.spread(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        to_weight = _sums(gradient * x, ctx.segments).to(weight.dtype)
        to_bias = _sums(gradient, ctx.segments).to(weight.dtype) if ctx.has_bias else None
        return gradient * ctx.segments.spread(weight), to_weight, to_bias, None


def _sums(x: Tensor, segments: Segments) -> Tensor:
    """(rows, a) to (groups, a)."""
    if segments.rows is None:
        return sums_by_product(x, segments)
    result: Tensor = kernels.group_sums(x, segments.ends)
    return result
