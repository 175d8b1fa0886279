"""Kernel of ``xpos.rotate``, which reads and writes every entry once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ENTRIES = 2048
"""Entries of a program's tile."""


def rotate(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, *, back: bool = False) -> Tensor:
    """``xpos.rotate`` on a GPU; with ``back``, the gradient of x from that of the result.

    Args:
        x: (batch, seq, heads, head_dim), neighbouring channels next to each other in memory.
        cos, sin: (batch or 1, seq, heads or 1, head_dim / 2), of equal strides.
        dtype: of the result.
    """
    batch, length, heads, width = x.shape
    result = torch.empty(x.shape, dtype=dtype, device=x.device)
    pairs = triton.next_power_of_2(width // 2)
    rows = max(1, ENTRIES // (2 * pairs))
    table = cos.expand(batch, length, heads, width // 2)
    with torch.cuda.device_of(x):
        _rotate[(triton.cdiv(batch * length * heads, rows),)](
            x,
            cos,
            sin,
            result,
            *x.stride()[:3],
            *table.stride()[:3],
            batch * length * heads,
            length,
            heads,
            width,
            -1.0 if back else 1.0,
            ROWS=rows,
            PAIRS=pairs,
        )
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]
    x,
    cos,
    sin,
    result,
    batch_stride,
    token_stride,
    head_stride,
    table_batch,
    table_token,
    table_head,
    rows,
    length,
    heads,
    width,
    sign,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head, token, batch = row % heads, row // heads % length, row // heads // length
    channel, pair = tl.arange(0, 2 * PAIRS)[None, :], tl.arange(0, PAIRS)[None, :]
    inside = (row < rows)[:, None] & (channel < width)
    source = batch * batch_stride + token * token_stride + head * head_stride
    place = (batch * table_batch + token * table_token + head * table_head)[:, None] + pair
    known = (row < rows)[:, None] & (pair < width // 2)
    c = tl.load(cos + place, mask=known, other=0.0)
    s = tl.load(sin + place, mask=known, other=0.0) * sign
    entries = tl.load(x + source[:, None] + channel, mask=inside, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(entries, (ROWS, PAIRS, 2)))
    turned = tl.reshape(tl.join(even * c - odd * s, odd * c + even * s), (ROWS, 2 * PAIRS))
    tl.store(result + row[:, None] * width + channel, turned.to(result.dtype.element_ty), mask=inside)
