"""Kernel of ``xpos.rotate``, which reads and writes every entry once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compiled_kernel import compiled_kernel
from .quick_launch import Repeats, launch

ENTRIES = 2048
"""Entries of one head in a program's tile, so that a thread reads sixteen bytes at a time."""
HEADS = 4
"""Heads that a program rotates by the table that it has read."""
_REPEATS = Repeats()


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
    result = torch.empty(x.shape, dtype=dtype, device=x.device)
    grid, sizes, tile = _sizes(x, rows, back)
    operands = _operands(x, cos, sin, result)
    launch(_rotate, grid, *operands, rows, *sizes, TABLES=cos.size(2) > 1, **tile, settings={})
    return result


def _like_both(
    query: Tensor,
    key: Tensor,
    query_cos: Tensor,
    query_sin: Tensor,
    key_cos: Tensor,
    key_sin: Tensor,
    rows: Tensor | None,
    dtype: torch.dtype,
    back: bool,
) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape, dtype=dtype), key.new_empty(key.shape, dtype=dtype)


@compiled_kernel(_like_both)
def rotate_both(
    query: Tensor,
    key: Tensor,
    query_cos: Tensor,
    query_sin: Tensor,
    key_cos: Tensor,
    key_sin: Tensor,
    rows: Tensor | None,
    dtype: torch.dtype,
    back: bool,
) -> tuple[Tensor, Tensor]:
    """``rotate`` of queries and keys of one shape, each by a table of its own, in one launch."""
    queries, keys = (torch.empty(x.shape, dtype=dtype, device=x.device) for x in (query, key))
    tensors = query, query_cos, query_sin, queries, key, key_cos, key_sin, keys, rows
    layouts = [(x.shape, x.stride()) for x in (query, query_cos, key, key_cos)]
    request = (query.get_device(), query.dtype, key.dtype, query_cos.dtype, dtype, back, rows is None, *layouts)
    if _REPEATS.start(request, tensors):
        return queries, keys
    (tokens, heads), sizes, tile = _sizes(query, rows, back)
    operands = *_operands(query, query_cos, query_sin, queries), *_operands(key, key_cos, key_sin, keys), rows, *sizes
    constants = {"OF_QUERY": query_cos.size(2) > 1, "OF_KEY": key_cos.size(2) > 1, **tile}
    grid = tokens, heads, 2
    compiled = launch(_rotate_both, grid, *operands, **constants, settings={})
    if compiled is not None:
        names = _rotate_both.arg_names
        arguments = dict(zip(names, (*operands, *constants.values()), strict=True))
        _REPEATS.keep(request, compiled, grid, arguments, [*names[:4], *names[10:14], "rows"])
    return queries, keys


def _operands(x: Tensor, cos: Tensor, sin: Tensor, result: Tensor) -> tuple[Tensor | int, ...]:
    """A tensor, its table, the result, and the strides of tensor and table."""
    batch, token, head, _ = cos.stride()
    return x, cos, sin, result, *x.stride()[:3], batch if cos.size(0) > 1 else 0, token, head


def _sizes(
    x: Tensor, rows: Tensor | None, back: bool
) -> tuple[tuple[int, int], tuple[int | float, ...], dict[str, int]]:
    """Programs, sizes with the sign of the angles, and the tile of a program."""
    batch, length, heads, width = x.shape
    pairs = triton.next_power_of_2(width // 2)
    tokens = max(1, ENTRIES // (2 * pairs))
    programs = batch * -(-length // tokens), -(-heads // HEADS)
    tile = {"GIVEN": rows is not None, "TOKENS": tokens, "HEADS": HEADS, "PAIRS": pairs}
    return programs, (length, heads, width, -1.0 if back else 1.0), tile


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_both(  # type: ignore[no-untyped-def]
    query,
    query_cos,
    query_sin,
    queries,
    query_batch,
    query_token,
    query_head,
    query_table_batch,
    query_table_token,
    query_table_head,
    key,
    key_cos,
    key_sin,
    keys,
    key_batch,
    key_token,
    key_head,
    key_table_batch,
    key_table_token,
    key_table_head,
    rows,
    length,
    heads,
    width,
    sign,
    OF_QUERY: tl.constexpr,
    OF_KEY: tl.constexpr,
    GIVEN: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    if tl.program_id(2) == 0:
        _rotate(
            query, query_cos, query_sin, queries, query_batch, query_token, query_head,
            query_table_batch, query_table_token, query_table_head, rows, length, heads, width, sign,
            OF_QUERY, GIVEN, TOKENS, HEADS, PAIRS,
        )  # fmt: skip
    else:
        _rotate(
            key, key_cos, key_sin, keys, key_batch, key_token, key_head,
            key_table_batch, key_table_token, key_table_head, rows, length, heads, width, sign,
            OF_KEY, GIVEN, TOKENS, HEADS, PAIRS,
        )  # fmt: skip


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
