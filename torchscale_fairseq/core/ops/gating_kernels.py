"""Kernels of ``gating.gate``, which read and write every entry once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

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
