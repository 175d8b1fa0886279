"""Dilated attention by kernels that serve all branches in one launch each, forward and backward.

Each branch's softmax of a token is a part, which has a slot. A forward pass computes the parts and mixes them. With the
denominators of the mixture the backward pass needs to know nothing of the parts: what a key gets from a query is the
same function of their score in all branches.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, Sequence  # noqa: UP035 - torch 2.6 knows typing's alone in signatures of operators

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import dilated_kernels, dilated_mixing_kernels
from .compiled_kernel import compiled_kernel
from .dilated_slots import Slots, slots_of, tiles

MIXED = 64
"""Tokens of a program of the kernels that mix."""


@dataclass(frozen=True)
class Launch:
    """Sizes of a kernel's tiles, and how it runs them."""

    queries: int
    keys: int
    stages: int
    warps: int

    def options(self, head_dim: int, *, causal: bool) -> dict[str, Any]:
        """Arguments by name of a kernel in ``dilated_kernels``."""
        return {
            "CAUSAL": causal,
            "D": head_dim,
            "WIDTH": width(head_dim),
            "QUERIES": self.queries,
            "KEYS": self.keys,
            "STAGES": self.stages,
            "num_warps": self.warps,
        }


ATTEND = {64: Launch(128, 64, 3, 8), 128: Launch(128, 64, 2, 8)}
"""By the width of a head, up to which each serves."""
DIFFERENTIATE_KEYS = {64: Launch(32, 128, 3, 4), 128: Launch(64, 64, 2, 8)}
DIFFERENTIATE_QUERIES = {64: Launch(128, 64, 3, 8), 128: Launch(128, 64, 2, 8)}
LARGEST_HEAD = max(ATTEND)
"""Channels."""


def attend_to_all_branches(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_lengths: Sequence[int],
    dilation_ratios: Sequence[int],
    *,
    real: Tensor | None,
    scale: float,
    causal: bool,
) -> Tensor:
    """``dilated_attention`` in half precision on a GPU that has tensor descriptors.

    Args:
        query, key, value, segment_lengths, dilation_ratios, scale, causal: as there.
        real: (batch, seq), True for tokens, which come first in each row; None for all.
    """
    lengths = None if real is None else real.sum(1, dtype=torch.int32)
    output: Tensor = _AllBranches.apply(  # type: ignore[no-untyped-call]
        query, key, value, lengths, list(segment_lengths), list(dilation_ratios), scale, causal
    )
    return output


class _AllBranches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None, *settings: Any) -> Tensor:
        output, wholes = attend(query, key, value, lengths, *settings)
        ctx.save_for_backward(query, key, value, output, wholes, lengths)
        ctx.settings = settings
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        *_, lengths = tensors = ctx.saved_tensors
        if lengths is not None:
            behind = torch.arange(gradient.size(1), device=gradient.device)[None] >= lengths[:, None]
            gradient = gradient.masked_fill(behind[:, :, None, None], 0.0)
        gradients = attend_backward(gradient, *tensors, *ctx.settings)
        return *gradients.unbind(), None, None, None, None, None


@functools.cache
def width(head_dim: int) -> int:
    """Columns of a tile for this many channels."""
    return max(16, triton.next_power_of_2(head_dim))


def _launch(of: dict[int, Launch], head_dim: int) -> Launch:
    return next(launch for limit, launch in of.items() if head_dim <= limit)


def _readable(x: Tensor) -> Tensor:
    """As it is, if tensor descriptors can read it: channels are neighbours and rows begin at multiples of 16 bytes."""
    *strides, last = x.stride()
    begins_well = math.gcd(x.storage_offset(), *strides) * x.element_size() % 16 == 0
    return x if last == 1 and begins_well else x.contiguous()


class _Call:
    """The arguments that kernels of a call share.

    Args:
        query, key, value, lengths, segment_lengths, ratios: as for ``attend``.
        gradient: of the output, in a backward pass.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lengths: Tensor | None,
        segment_lengths: Sequence[int],
        ratios: Sequence[int],
        gradient: Tensor | None = None,
    ):
        self.batch, self.length, self.heads, self.head_dim = query.shape
        self.slots = slots_of(segment_lengths, ratios, self.length)
        self.branches = self.slots.rows
        self.tensors = tuple(map(_readable, (query, key, value)))
        self.gradient = None if gradient is None else _readable(gradient)
        given = [*self.tensors, *([] if self.gradient is None else [self.gradient])]
        self.strides = tuple(x.stride()[:3] for x in given)
        self.lengths, self.sizes = lengths, (self.length, self.heads, self.slots.total)

    def in_slots(self, *several: int) -> Tensor:
        """Memory for (batch, heads, slots, head_dim), or for several such."""
        return self.tensors[0].new_empty(*several, self.batch, self.heads, self.slots.total, self.head_dim)

    def scalars(self) -> Tensor:
        """Memory for (batch, heads, slots) float32."""
        return self.tensors[0].new_empty(self.batch, self.heads, self.slots.total, dtype=torch.float32)

    def tiles(self, block: int, *, last_first: bool) -> Tensor:
        """Table of the tiles of all segments."""
        return tiles(self.slots, block, self.tensors[0].device, last_first=last_first)

    def mix(self, parts: Tensor, logs: Tensor | None = None, wholes: Tensor | None = None) -> Tensor:
        """``dilated_mixing_kernels.mix`` of (batch, heads, slots, head_dim), or of several such, (n, batch, ...)."""
        several = parts.shape[:-4].numel()
        into = parts.new_empty(*parts.shape[:-4], self.batch, self.length, self.heads, self.head_dim)
        lengths = self.lengths if self.lengths is None or several == 1 else self.lengths.repeat(several)
        blocks, rows = self.grid
        arguments = parts, logs, into, wholes, self.branches, lengths, self.sizes
        dilated_mixing_kernels.mix[blocks, several * rows](*arguments, **self.of_mixing)
        return into

    @property
    def grid(self) -> tuple[int, int]:
        """Grid of the kernels that mix."""
        return -(-self.length // MIXED), self.batch * self.heads

    @property
    def of_mixing(self) -> dict[str, int]:
        """Arguments by name of the kernels that mix."""
        return {"BRANCHES": len(self.branches), "D": self.head_dim, "WIDTH": width(self.head_dim), "BLOCK": MIXED}


def _like_output(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None,
    segment_lengths: Sequence[int],
    ratios: Sequence[int],
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = query.shape
    slots = Slots(tuple(zip(segment_lengths, ratios, strict=True)), length).total  # length may be a symbol
    return query.new_empty(query.shape), query.new_empty(batch, heads, slots, dtype=torch.float32)


@compiled_kernel(_like_output)
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None,
    segment_lengths: Sequence[int],
    ratios: Sequence[int],
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Dilated attention, and the logarithm to the base of two of each token's denominator in the slots of its parts.

    Args:
        query, key, value: (batch, seq, heads, head_dim), bfloat16 or float16.
        lengths: (batch,) int32, real tokens of each row, which come first; None for all.
        segment_lengths, ratios: of the branches.
        scale: factor on the scores.
        causal: a query sees keys up to its own position.

    Returns:
        Shaped like query; (batch, heads, slots) float32.
    """
    triton.set_allocator(_workspace)
    call = _Call(query, key, value, lengths, segment_lengths, ratios)
    launch = _launch(ATTEND, call.head_dim)
    table = call.tiles(launch.queries, last_first=causal)
    parts, logs, wholes = call.in_slots(), call.scalars(), call.scalars()
    dilated_kernels.attend[len(table), call.batch * call.heads](
        *call.tensors,
        parts,
        logs,
        table,
        lengths,
        call.sizes,
        call.strides,
        scale * math.log2(math.e),
        **launch.options(call.head_dim, causal=causal),
    )
    return call.mix(parts, logs, wholes), wholes


def _like_gradients(gradient: Tensor, query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(3, *query.shape)


@compiled_kernel(_like_gradients)
def attend_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    wholes: Tensor,
    lengths: Tensor | None,
    segment_lengths: Sequence[int],
    ratios: Sequence[int],
    scale: float,
    causal: bool,
) -> Tensor:
    """Gradients of ``attend`` for query, key and value, one after the other, (3, batch, seq, heads, head_dim).

    Args:
        gradient: of its first result; zero at tokens that are not real.
        query, key, value, lengths, segment_lengths, ratios, scale, causal: its arguments.
        output, wholes: its results.
    """
    triton.set_allocator(_workspace)
    call = _Call(query, key, value, lengths, segment_lengths, ratios, gradient)
    products = call.scalars()
    dilated_mixing_kernels.multiply[call.grid](
        call.gradient, output, products, call.branches, call.sizes, call.strides[3], **call.of_mixing
    )
    parts = call.in_slots(3)
    of_query, of_key, of_value = parts.unbind()
    given = call.gradient, *call.tensors, wholes, products
    rest = lengths, call.sizes, call.strides, scale * math.log2(math.e), scale
    launch = _launch(DIFFERENTIATE_KEYS, call.head_dim)
    table = call.tiles(launch.keys, last_first=False)
    dilated_kernels.differentiate_keys[len(table), call.batch * call.heads](
        *given, of_key, of_value, table, *rest, **launch.options(call.head_dim, causal=causal)
    )
    launch = _launch(DIFFERENTIATE_QUERIES, call.head_dim)
    table = call.tiles(launch.queries, last_first=causal)
    dilated_kernels.differentiate_queries[len(table), call.batch * call.heads](
        *given, of_query, table, *rest, **launch.options(call.head_dim, causal=causal)
    )
    return call.mix(parts)


def _workspace(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory for the descriptors that kernels write."""
    return torch.empty(size, dtype=torch.int8, device="cuda")
