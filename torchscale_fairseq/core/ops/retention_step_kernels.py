"""Kernel of ``retention_step.retention_step``, which reads and writes every entry of the state once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .retention_tables import RetentionTables

ENTRIES = 8192
"""Entries of the state that a program of four warps holds in registers."""
VALUES = 32
"""Columns of a program's tile, at most: 128 bytes of a row."""


def retention_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    rotation: RetentionTables | None,
    state: Tensor | None,
    after: Tensor,
) -> Tensor:
    """The output of one token, (batch, 1, heads, value_dim) in float32.

    Args:
        query, key, value: as for ``retention_step.retention_step``, channels next to each other in memory.
        log_decay, rotation: as there, contiguous.
        state: before the token, contiguous, in float32; None for zeros.
        after: is filled with the state after the token; may be the one before.
    """
    batch, _, heads, key_dim = query.shape
    value_dim = value.size(-1)
    output = torch.empty((batch, 1, heads, value_dim), dtype=torch.float32, device=query.device)
    pairs = triton.next_power_of_2(triton.cdiv(key_dim, 2))
    columns = max(1, min(VALUES, ENTRIES // (2 * pairs)))
    tables = (None,) * 4 if rotation is None else (*rotation.query, *rotation.key)
    inputs = query, key, value
    with torch.cuda.device_of(query):
        _step[(batch * heads * triton.cdiv(value_dim, columns),)](
            *inputs,
            log_decay,
            *tables,
            state,
            after,
            output,
            *(x.stride(axis) for x in inputs for axis in (0, 2)),
            *_table_strides(query, tables[0]),
            *_table_strides(query, tables[2]),
            heads,
            key_dim,
            value_dim,
            ROTATED=rotation is not None,
            GIVEN=state is not None,
            PAIRS=pairs,
            COLUMNS=columns,
        )
    return output


def _table_strides(query: Tensor, table: Tensor | None) -> tuple[int, int]:
    """From row to row and from head to head."""
    if table is None:
        return 0, 0
    strides = table.expand(*query.shape[:3], -1).stride()
    return strides[0], strides[2]


@triton.jit  # type: ignore[untyped-decorator]
def _pairs(x, cos, sin, table, pair, width, ROTATED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Even and odd channels of a query or a key, in float32."""
    even = tl.load(x + 2 * pair, mask=2 * pair < width, other=0.0).to(tl.float32)
    odd = tl.load(x + 2 * pair + 1, mask=2 * pair + 1 < width, other=0.0).to(tl.float32)
    if ROTATED:
        c = tl.load(cos + table + pair, mask=2 * pair < width, other=0.0)
        s = tl.load(sin + table + pair, mask=2 * pair < width, other=0.0)
        even, odd = even * c - odd * s, odd * c + even * s
    return even, odd


@triton.jit  # type: ignore[untyped-decorator]
def _step(  # type: ignore[no-untyped-def]
    query,
    key,
    value,
    log_decay,
    query_cos,
    query_sin,
    key_cos,
    key_sin,
    state,
    after,
    output,
    query_batch,
    query_head,
    key_batch,
    key_head,
    value_batch,
    value_head,
    query_table_batch,
    query_table_head,
    key_table_batch,
    key_table_head,
    heads,
    key_dim,
    value_dim,
    ROTATED: tl.constexpr,
    GIVEN: tl.constexpr,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """a program takes a token into COLUMNS columns of one head's state, whose even and odd rows it holds apart."""
    blocks = tl.cdiv(value_dim, COLUMNS)
    matrix = (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = matrix // heads, matrix % heads
    pair = tl.arange(0, PAIRS)
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    even = matrix * key_dim * value_dim + 2 * pair[:, None] * value_dim + column[None, :]
    known = column < value_dim
    in_even, in_odd = known[None, :] & (2 * pair < key_dim)[:, None], known[None, :] & (2 * pair + 1 < key_dim)[:, None]
    own = value + batch * value_batch + head * value_head
    v = tl.load(own + column, mask=known, other=0.0).to(tl.float32)[None, :]
    own, table = key + batch * key_batch + head * key_head, batch * key_table_batch + head * key_table_head
    k_even, k_odd = _pairs(own, key_cos, key_sin, table, pair, key_dim, ROTATED)
    s_even, s_odd = k_even[:, None] * v, k_odd[:, None] * v
    if GIVEN:
        # in float64, since an error would grow from token to token
        decay = tl.exp(tl.load(log_decay + head).to(tl.float64)).to(tl.float32)
        old_even = tl.load(state + even, mask=in_even, other=0.0)
        old_odd = tl.load(state + even + value_dim, mask=in_odd, other=0.0)
        s_even, s_odd = decay * old_even + s_even, decay * old_odd + s_odd
    own, table = query + batch * query_batch + head * query_head, batch * query_table_batch + head * query_table_head
    q_even, q_odd = _pairs(own, query_cos, query_sin, table, pair, key_dim, ROTATED)
    total = tl.sum(q_even[:, None] * s_even + q_odd[:, None] * s_odd, 0)
    tl.store(after + even, s_even, mask=in_even)
    tl.store(after + even + value_dim, s_odd, mask=in_odd)
    tl.store(output + matrix * value_dim + column, total, mask=known)
