"""Kernels of ``gating.gate``, which read and write every entry once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .quick_launch import launch

BLOCK = 2048
GELU, RELU, SILU = 0, 1, 2


def gate(x: Tensor, y: Tensor, kind: int) -> Tensor:
    """activation(x) * y, contiguous and of one shape. kind: GELU, RELU or SILU."""
    result = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _forward[(triton.cdiv(x.numel(), BLOCK),)](x, y, result, x.numel(), KIND=kind, BLOCK=BLOCK)
    return result


def gate_backward(gradient: Tensor, x: Tensor, y: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    """Gradients of ``gate`` for x and y; gradient is contiguous."""
    into_x, into_y = torch.empty_like(x), torch.empty_like(y)
    with torch.cuda.device_of(x):
        _backward[(triton.cdiv(x.numel(), BLOCK),)](gradient, x, y, into_x, into_y, x.numel(), KIND=kind, BLOCK=BLOCK)
    return into_x, into_y


@triton.jit  # type: ignore[untyped-decorator]
def _share(x, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """activation(x) / x."""
    if KIND == 0:
        share = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
    elif KIND == 1:
        share = (x > 0).to(tl.float32)
    else:
        share = tl.sigmoid(x)
    return share


@triton.jit  # type: ignore[untyped-decorator]
def _forward(x, y, result, count, KIND: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(x + entry, mask=entry < count, other=0.0).to(tl.float32)
    b = tl.load(y + entry, mask=entry < count, other=0.0).to(tl.float32)
    tl.store(result + entry, (a * _share(a, KIND) * b).to(result.dtype.element_ty), mask=entry < count)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    gradient, x, y, into_x, into_y, count, KIND: tl.constexpr, BLOCK: tl.constexpr
):
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gradient + entry, mask=entry < count, other=0.0).to(tl.float32)
    a = tl.load(x + entry, mask=entry < count, other=0.0).to(tl.float32)
    b = tl.load(y + entry, mask=entry < count, other=0.0).to(tl.float32)
    share = _share(a, KIND)
    if KIND == 0:
        slope = share + a * 0.3989422804014327 * tl.exp(-0.5 * a * a)
    elif KIND == 1:
        slope = share
    else:
        slope = share * (1 + a * (1 - share))
    tl.store(into_x + entry, (g * b * slope).to(into_x.dtype.element_ty), mask=entry < count)
    tl.store(into_y + entry, (g * a * share).to(into_y.dtype.element_ty), mask=entry < count)


def normalised_gate(x: Tensor, heads: Tensor, eps: float) -> Tensor:
    """``gating.normalised_gate`` of contiguous tensors."""
    result = torch.empty_like(x)
    rows, width, tile = _rows(heads)
    with torch.cuda.device_of(x):
        grid = (-(-rows // tile["ROWS"]),)
        launch(_normalised_forward, grid, x, heads, result, rows, width, eps, **tile, settings={})
    return result


def normalised_gate_backward(gradient: Tensor, x: Tensor, heads: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of ``normalised_gate`` for x and heads; gradient is contiguous."""
    into_x, into_heads = torch.empty_like(x), torch.empty_like(heads)
    rows, width, tile = _rows(heads)
    with torch.cuda.device_of(x):
        tensors = gradient, x, heads, into_x, into_heads
        launch(_normalised_backward, (-(-rows // tile["ROWS"]),), *tensors, rows, width, eps, **tile, settings={})
    return into_x, into_heads


def _rows(heads: Tensor) -> tuple[int, int, dict[str, int]]:
    """Rows to be normalised, their width, and the tile of a program."""
    width = heads.size(-1)
    columns = triton.next_power_of_2(width)
    return heads.numel() // width, width, {"ROWS": max(1, BLOCK // columns), "COLUMNS": columns}


@triton.jit  # type: ignore[untyped-decorator]
def _normalised_forward(  # type: ignore[no-untyped-def]
    x, heads, result, rows, width, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    entry, inside = row[:, None] * width + column, (row < rows)[:, None] & (column < width)
    a = tl.load(x + entry, mask=inside, other=0.0).to(tl.float32)
    h = tl.load(heads + entry, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(h * h, 1) / width + eps)
    y = a * tl.sigmoid(a) * h * scale[:, None]
    tl.store(result + entry, y.to(result.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _normalised_backward(  # type: ignore[no-untyped-def]
    gradient, x, heads, into_x, into_heads, rows, width, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    entry, inside = row[:, None] * width + column, (row < rows)[:, None] & (column < width)
    g = tl.load(gradient + entry, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(x + entry, mask=inside, other=0.0).to(tl.float32)
    h = tl.load(heads + entry, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(h * h, 1) / width + eps)[:, None]
    share, normalised = tl.sigmoid(a), h * scale
    of_x = g * normalised * share * (1 + a * (1 - share))
    of_normalised = g * a * share
    along = tl.sum(of_normalised * normalised, 1)[:, None] / width
    of_heads = scale * (of_normalised - normalised * along)
    tl.store(into_x + entry, of_x.to(into_x.dtype.element_ty), mask=inside)
    tl.store(into_heads + entry, of_heads.to(into_heads.dtype.element_ty), mask=inside)
