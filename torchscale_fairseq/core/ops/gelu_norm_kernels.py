"""Kernels of ``gelu_norm``: one forward, one backward, each of which reads and writes every entry once.

Rows may belong to groups (experts), each with parameters of its own: then ends, (groups,) int32, and group, (rows,)
int32, are those of ``segments.Segments``, and rows of no group hold anything.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@torch.library.custom_op("torchscale_fairseq::bias_gelu_norm", mutates_args=())
def bias_gelu_norm(
    x: Tensor,
    bias: Tensor,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    ends: Tensor | None = None,
    group: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows of ``layer_norm(gelu(x + bias)) * weight + norm_bias``, and what their gradients need.

    Args:
        x: (rows, width), contiguous.
        bias, weight, norm_bias: (width,), or (groups, width).
        eps: added to the variance.
        ends, group: of the groups of rows; None without groups.

    Returns:
        (rows, width) in the dtype of x; mean and 1 / standard deviation of each row, (2, rows), float32.
    """
    rows, width = x.shape
    y = torch.empty_like(x)
    moments = torch.empty(2, rows, device=x.device)
    first = max(triton.next_power_of_2(width) // 2, 1)  # two blocks, so that a row of 3,072 is not filled up to 4,096
    second = triton.next_power_of_2(max(width - first, 1))
    _forward[(rows,)](
        x,
        bias,
        weight,
        norm_bias,
        y,
        moments[0],
        moments[1],
        bias if group is None else group,
        width,
        1 if ends is None else len(ends),
        eps,
        GROUPED=group is not None,
        FIRST=first,
        SECOND=second,
        num_warps=4 if first <= 2048 else 16,
    )
    return y, moments


@bias_gelu_norm.register_fake
def _(
    x: Tensor,
    bias: Tensor,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    ends: Tensor | None = None,
    group: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(2, x.size(0), dtype=torch.float32)


@torch.library.custom_op("torchscale_fairseq::bias_gelu_norm_backward", mutates_args=())
def bias_gelu_norm_backward(
    gradient: Tensor, x: Tensor, bias: Tensor, weight: Tensor, moments: Tensor, ends: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of ``bias_gelu_norm``.

    Args:
        gradient: (rows, width), of its first result.
        x, bias, weight, moments, ends: its arguments and second result.

    Returns:
        The gradient of x, and those of bias, weight and norm_bias, (3, ...), float32.
    """
    rows, width = x.shape
    groups = 1 if ends is None else len(ends)
    into_x = torch.empty_like(x)
    programs = max(1, min(rows, 2 * _processors(x)) // groups)
    parts = torch.empty(3, programs, groups, width, device=x.device)
    block = triton.next_power_of_2(width)
    _backward[programs, groups](
        gradient,
        x,
        bias,
        weight,
        moments[0],
        moments[1],
        into_x,
        parts,
        bias if ends is None else ends,
        rows,
        width,
        GROUPED=ends is not None,
        AHEAD=block <= 4096,  # there are registers for it
        BLOCK=block,
        num_warps=4 if block < 4096 else 16,
    )
    return into_x, parts.sum(1).view(3, *bias.shape)


@bias_gelu_norm_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, bias: Tensor, weight: Tensor, moments: Tensor, ends: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(3, *bias.shape, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, bias, weight, _, _, ends, _ = inputs
    ctx.save_for_backward(x, bias, weight, output[1], ends)


def _differentiate(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, bias, weight, moments, ends = ctx.saved_tensors
    into_x, sums = bias_gelu_norm_backward(gradient.contiguous(), x, bias, weight, moments, ends)
    into_bias, into_weight, into_norm_bias = sums.to(bias.dtype)
    return into_x, into_bias, into_weight, into_norm_bias, None, None, None


bias_gelu_norm.register_autograd(_differentiate, setup_context=_keep)


def _processors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1


@triton.jit
def _tail(h):  # type: ignore[no-untyped-def]
    """The standard normal's tail beyond |h|, to 1e-7 (Abramowitz and Stegun, 26.2.17), and exp(-h^2 / 2).

    GELU needs the first and its slope, and both share an exponential, which erf and exp do not. On a GPU exp2 is
    one instruction and exp five, a reciprocal two by way of the root and ten by division.
    """
    power = tl.exp2(-0.7213475204444817 * h * h)
    root = tl.rsqrt(1 + 0.2316419 * tl.abs(h))
    t = root * root
    series = 0.12741480 + t * (-0.14224837 + t * (0.71070687 + t * (-0.72657601 + t * 0.53070271)))
    return power * t * series, power


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    x,
    bias,
    weight,
    norm_bias,
    y,
    mean,
    scale,
    group,
    width,
    groups,
    eps,
    GROUPED: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if GROUPED:
        of_row = tl.load(group + row).to(tl.int64)
        if of_row >= groups:
            return
        bias += of_row * width
        weight += of_row * width
        norm_bias += of_row * width
    columns = tl.arange(0, FIRST)
    inside = columns >= 0
    rest = FIRST + tl.arange(0, SECOND)
    in_rest = rest < width
    x += row * width
    y += row * width
    g = _activated(x, bias, columns, inside)
    g_rest = _activated(x, bias, rest, in_rest)
    middle = (tl.sum(g, 0) + tl.sum(g_rest, 0)) / width
    g -= middle
    g_rest = tl.where(in_rest, g_rest - middle, 0.0)
    inverse = 1 / tl.sqrt((tl.sum(g * g, 0) + tl.sum(g_rest * g_rest, 0)) / width + eps)
    _store_scaled(y, g * inverse, weight, norm_bias, columns, inside)
    _store_scaled(y, g_rest * inverse, weight, norm_bias, rest, in_rest)
    tl.store(mean + row, middle)
    tl.store(scale + row, inverse)


@triton.jit
def _activated(x, bias, columns, inside):  # type: ignore[no-untyped-def]
    """GELU of entries of a row with their biases; 0 outside."""
    h = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
    h += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tail, _ = _tail(h)
    return tl.maximum(h, 0.0) - tl.abs(h) * tail


@triton.jit
def _store_scaled(y, normal, weight, norm_bias, columns, inside):  # type: ignore[no-untyped-def]
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(norm_bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + columns, (normal * w + b).to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    gradient,
    x,
    bias,
    weight,
    mean,
    scale,
    into_x,
    parts,
    ends,
    rows,
    width,
    GROUPED: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    group, groups = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    begin = program
    if GROUPED:
        begin += tl.load(ends + group - 1, mask=group > 0, other=0)
        rows = tl.load(ends + group)
        bias += group * width
        weight += group * width
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    added = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    into_bias = tl.zeros((BLOCK,), tl.float32)
    into_weight = tl.zeros((BLOCK,), tl.float32)
    into_norm_bias = tl.zeros((BLOCK,), tl.float32)
    if AHEAD:  # the next row is on its way while one is computed
        coming, coming_gradient = _rows_of(x, gradient, begin * width + columns, inside & (begin < rows))
    for row in range(begin, rows, programs):
        here = row * width + columns
        if not AHEAD:
            coming, coming_gradient = _rows_of(x, gradient, here, inside)
        h, dy = coming.to(tl.float32) + added, coming_gradient.to(tl.float32)
        if AHEAD:
            follows = inside & (row + programs < rows)
            coming, coming_gradient = _rows_of(x, gradient, here + programs * width, follows)
        tail, power = _tail(h)
        inverse = tl.load(scale + row)
        g = tl.maximum(h, 0.0) - tl.abs(h) * tail
        normal = tl.where(inside, (g - tl.load(mean + row)) * inverse, 0.0)
        into_weight += dy * normal
        into_norm_bias += dy
        dy *= w
        along, level = _totals(dy * normal, dy, AHEAD)
        along, level = along / width, level / width
        slope = tl.where(h < 0, tail, 1 - tail) + 0.3989422804014327 * h * power
        dx = (dy - normal * along - level) * inverse * slope
        into_bias += tl.where(inside, dx, 0.0)
        tl.store(into_x + here, dx.to(into_x.dtype.element_ty), mask=inside)
    part = parts + (program * groups + group) * width + columns
    tl.store(part, into_bias, mask=inside)
    tl.store(part + programs * groups * width, into_weight, mask=inside)
    tl.store(part + 2 * programs * groups * width, into_norm_bias, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _totals(a, b, AT_ONCE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of two rows; at once they need half the barriers, and more registers."""
    if AT_ONCE:
        total_a, total_b = tl.reduce((a, b), 0, _add_both)
    else:
        total_a, total_b = tl.sum(a, 0), tl.sum(b, 0)
    return total_a, total_b


@triton.jit
def _add_both(a, b, c, d):  # type: ignore[no-untyped-def]
    return a + c, b + d


@triton.jit
def _rows_of(x, gradient, places, inside):  # type: ignore[no-untyped-def]
    return tl.load(x + places, mask=inside, other=0.0), tl.load(gradient + places, mask=inside, other=0.0)
