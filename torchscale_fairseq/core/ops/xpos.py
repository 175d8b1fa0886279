"""xPos: rotary positions whose scores decay with distance.

"A Length-Extrapolatable Transformer", arXiv:2212.10554, eq. 12 and algorithm 1. Channel pair i turns by
theta_i = 10000 ** (-2i / d) per token; queries at n are scaled by zeta_i ** ((n - c) / base), keys at m by
zeta_i ** ((c - m) / base), so that a score carries zeta_i ** ((n - m) / base) for any centre c, with
zeta_i = (2i / d + 0.4) / 1.4. Tables are float32 (float64 for float64 models) whatever the model's dtype.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .gelu_norm import TRITON

if TRITON:
    from . import rotation_kernels as kernels

from ..errors import InputError
from .masks import is_traced

_LARGEST_EXPONENT = 80 / -math.log(0.4 / 1.4)
_LARGEST_FP16_EXPONENT = 4


@dataclass(frozen=True)
class XPosTables:
    """Cosines and sines, scaled where scores decay: each (batch or 1, seq, 1, head_dim / 2)."""

    query: tuple[Tensor, Tensor]
    key: tuple[Tensor, Tensor]
    wide: bool
    """Whether rotated queries and keys would overflow float16 and must stay in float32."""


def decay_factors(head_dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """zeta of each channel pair, (head_dim / 2,)."""
    return (torch.arange(0, head_dim, 2, dtype=dtype, device=device) / head_dim + 0.4) / 1.4


def longest_span(scale_base: int) -> int:
    """The greatest distance in tokens between two keys whose scales fit float32."""
    return int(_LARGEST_EXPONENT * scale_base)


def xpos_tables(
    positions: Tensor,
    head_dim: int,
    *,
    decay: bool,
    scale_base: int,
    centre: int | Tensor,
    span: int,
    dtype: torch.dtype,
) -> XPosTables:
    """Tables for one forward pass; every layer shares them.

    Args:
        positions: (batch or 1, seq), tokens.
        head_dim: channels of a head, even.
        decay: scale as well as rotate; meaningful only where keys stand before the query.
        scale_base: tokens over which scores decay by zeta.
        centre: position at which nothing is scaled.
        span: distance in tokens between the first and the last key.
        dtype: of the model.

    Raises:
        InputError: the scale would overflow; not checked in a traced model, whose lengths are open.
    """
    wide = torch.promote_types(dtype, torch.float32)
    pairs = torch.arange(0, head_dim, 2, dtype=wide, device=positions.device)
    angles = positions[..., None, None].to(wide) * 10000 ** (-pairs / head_dim)
    cos, sin = angles.cos(), angles.sin()
    if not decay:
        return XPosTables((cos, sin), (cos, sin), wide=False)
    if not is_traced() and span > longest_span(scale_base):
        raise InputError(
            f"xpos_scale_base ({scale_base}) is too small for {span} tokens; "
            f"use at least {math.ceil(span / _LARGEST_EXPONENT)}."
        )
    exponents = (positions[..., None, None].to(wide) - centre) / scale_base
    scale = decay_factors(head_dim, wide, positions.device) ** exponents
    return XPosTables(
        (cos * scale, sin * scale),
        (cos / scale, sin / scale),
        wide=dtype == torch.float16 and span / scale_base > _LARGEST_FP16_EXPONENT,
    )


def rotate(
    x: Tensor, table: tuple[Tensor, Tensor], dtype: torch.dtype | None = None, rows: Tensor | None = None
) -> Tensor:
    """Apply a table, in the table's dtype or wider.

    Args:
        x: (batch, seq, heads, head_dim); neighbouring channels form a pair.
        table: cosines and sines.
        dtype: of the result; the table's by default.
        rows: (batch, seq), contiguous: which token of the table's only row each token is rotated as; None: as its own.

    Returns:
        Shaped like x.
    """
    cos, sin = table
    dtype = dtype or cos.dtype
    if _has_kernel(x, cos, sin):
        return _Rotation.apply(x, cos, sin, rows, dtype)  # type: ignore[no-untyped-call]
    if rows is not None:
        cos, sin = cos[0][rows], sin[0][rows]
    even, odd = x.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2).to(dtype)


def rotate_both(
    query: Tensor,
    key: Tensor,
    of_query: tuple[Tensor, Tensor],
    of_key: tuple[Tensor, Tensor],
    dtype: torch.dtype | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``rotate`` of queries and of keys, each by a table of its own; by one kernel where they are of one shape."""
    if query.shape == key.shape and _has_kernel(query, *of_query) and _has_kernel(key, *of_key):
        return _Rotations.apply(query, key, *of_query, *of_key, rows, dtype or of_query[0].dtype)  # type: ignore[no-untyped-call]
    return rotate(query, of_query, dtype, rows), rotate(key, of_key, dtype, rows)


def _has_kernel(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """In half precision on a GPU, also in compiled code: torch would interleave channels entry by entry there."""
    return (
        TRITON
        and x.is_cuda
        and x.numel() > 0
        and x.dtype in (torch.float16, torch.bfloat16)
        and cos.dtype == torch.float32
        and x.stride(-1) == 1
        and cos.stride(-1) == 1
        and cos.stride() == sin.stride()
        and not is_traced()
    )


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.dtype = x.dtype
        ctx.save_for_backward(cos, sin, rows)
        return kernels.rotate(x, cos, sin, rows, dtype, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        cos, sin, rows = ctx.saved_tensors
        return kernels.rotate(gradient.contiguous(), cos, sin, rows, ctx.dtype, True), None, None, None, None


class _Rotations(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        query_cos: Tensor,
        query_sin: Tensor,
        key_cos: Tensor,
        key_sin: Tensor,
        rows: Tensor | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.dtype = query.dtype
        ctx.save_for_backward(query_cos, query_sin, key_cos, key_sin, rows)
        return kernels.rotate_both(query, key, query_cos, query_sin, key_cos, key_sin, rows, dtype, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_queries: Tensor, of_keys: Tensor) -> tuple[Tensor | None, ...]:
        arguments = (of_queries.contiguous(), of_keys.contiguous(), *ctx.saved_tensors, ctx.dtype, True)
        return *kernels.rotate_both(*arguments), None, None, None, None, None, None
