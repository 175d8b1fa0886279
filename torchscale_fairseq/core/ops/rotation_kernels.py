"""Kernel of ``xpos.rotate``, which reads and writes every entry once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compiled_kernel import compiled_kernel

ENTRIES = 2048
"""Entries of one head in a program's tile, so that a thread reads sixteen bytes at a time."""
HEADS = 4
"""Heads that a program rotates by the table that it has read."""


def _like_x(x: Tensor, cos: Tensor, sin: Tensor, rows: Tensor | None, dtype: torch.dtype, back: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


@compiled_kernel(_like_x)
def rotate(x: Tensor, cos: Tensor, sin: Tensor, rows: Tensor | None, dtype: torch.dtype, back: bool) -> Tensor:
    """``xpos.rotate`` on a GPU; with ``back``, the gradient of x from that of the result.

    Args:
        x: (batch, seq, heads, head_dim), neighbouring channels next to each other in memory.
        cos, sin: (batch or 1, seq, heads or 1, head_dim / 2), of equal strides.
        rows: (batch, seq), contiguous, as for ``xpos.rotate``.
        dtype: of the result.
        back: rotate by the opposite angles.
    """
    batch, length, heads, width = x.shape
    result = torch.empty(x.shape, dtype=dtype, device=x.device)
    pairs = triton.next_power_of_2(width // 2)
    tokens = max(1, ENTRIES // (2 * pairs))
    table = cos.expand(batch, length, heads, width // 2)
    _rotate[(batch * triton.cdiv(length, tokens), triton.cdiv(heads, HEADS))](
        x,
        cos,
        sin,
        rows,
        result,
        *x.stride()[:3],
        *table.stride()[:3],
        length,
        heads,
        width,
        -1.0 if back else 1.0,
        TABLES=cos.size(2) > 1,
        GIVEN=rows is not None,
        TOKENS=tokens,
        HEADS=HEADS,
        PAIRS=pairs,
    )
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]
    x,
    cos,
    sin,
    rows,
    result,
    batch_stride,
    token_stride,
    head_stride,
    table_batch,
    table_token,
    table_head,
    length,
    heads,
    width,
    sign,
    TABLES: tl.constexpr,
    GIVEN: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """a program rotates TOKENS tokens of a row, HEADS heads of each, by one table, or with TABLES by one a head.
    With GIVEN a token has the table's row that it is given."""
    blocks = tl.cdiv(length, TOKENS)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks).to(tl.int64) * TOKENS
    token = tl.arange(0, TOKENS)[:, None]
    channel, pair = tl.arange(0, 2 * PAIRS)[None, :], tl.arange(0, PAIRS)[None, :]
    there = token < length - first
    known = there & (pair < width // 2)
    if GIVEN:
        row = tl.load(rows + batch * length + first + token, mask=there, other=0)
        table = row * table_token + pair
    else:
        table = batch * table_batch + first * table_token + token * table_token + pair
    source = batch * batch_stride + first * token_stride + token * token_stride + channel
    target = (batch * length + first) * heads * width + token * heads * width + channel
    if not TABLES:
        c, s = tl.load(cos + table, mask=known, other=0.0), tl.load(sin + table, mask=known, other=0.0) * sign
    for i in tl.static_range(HEADS):
        head = tl.program_id(1).to(tl.int64) * HEADS + i
        inside = there & (channel < width) & (head < heads)
        if TABLES:
            own, given = table + head * table_head, known & (head < heads)
            c, s = tl.load(cos + own, mask=given, other=0.0), tl.load(sin + own, mask=given, other=0.0) * sign
        entries = tl.load(x + source + head * head_stride, mask=inside, other=0.0).to(tl.float32)
        even, odd = tl.split(tl.reshape(entries, (TOKENS, PAIRS, 2)))
        turned = tl.reshape(tl.join(even * c - odd * s, odd * c + even * s), (TOKENS, 2 * PAIRS))
        tl.store(result + target + head * width, turned.to(result.dtype.element_ty), mask=inside)
