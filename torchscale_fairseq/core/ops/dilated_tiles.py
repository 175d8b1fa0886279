"""The pieces of which the kernels of dilated attention are made.

A tile is a block of neighbouring kept tokens of one segment, for one head. In memory they are rows at equal distances,
ratio tokens each, which tensor descriptors read where they are. Axes: (rows), (columns) of a head.
"""

import triton
import triton.language as tl


@triton.jit
def place(table, lengths, sizes):  # type: ignore[no-untyped-def]
    """The tile of this program, from a table of ``dilated_slots.tiles``.

    Returns:
        Batch row and head; the first token that the head keeps of the segment; the ratio; the tile's first row; how
        many rows the segment has; the slot of its first row.
    """
    length, heads, slots = sizes
    entry = table + 5 * tl.program_id(0)
    start, segment, ratio = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    first, slot = tl.load(entry + 3), tl.load(entry + 4)
    batch, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    if lengths is not None:
        length = tl.load(lengths + batch)
    offset = head % ratio
    count = tl.cdiv(tl.maximum(tl.minimum(segment, length - start) - offset, 0), ratio)
    slot = (batch.to(tl.int64) * heads + head) * slots + slot
    return batch.to(tl.int64), head.to(tl.int64), (start + offset).to(tl.int64), ratio.to(tl.int64), first, count, slot


@triton.jit  # type: ignore[untyped-decorator]
def rows_of(x, strides, at, count, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The rows of a segment, (count, D), to be read in blocks, (BLOCK, WIDTH), with zeros around them.

    Args:
        x: (batch, seq, heads, D).
        strides: of its first three axes.
        at: batch row, head, first token and ratio.
        count: rows.
    """
    batch, head, token, ratio = at
    first = x + batch * strides[0] + token * strides[1] + head * strides[2]
    return tl.make_tensor_descriptor(first, [count, D], [ratio * strides[1], 1], [BLOCK, WIDTH])


@triton.jit  # type: ignore[untyped-decorator]
def scalars_of(x, slot, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The numbers of a segment's rows from a slot on, to be read in blocks, with zeros behind them."""
    return tl.make_tensor_descriptor(x + slot, [1, count], [tl.cdiv(count, 4).to(tl.int64) * 4, 1], [1, BLOCK])


@triton.jit  # type: ignore[untyped-decorator]
def keep(into, x, slot, rows, count, D: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store the rows of a tile, (rows, WIDTH), in their slots."""
    columns = tl.arange(0, WIDTH)
    inside = (rows < count)[:, None] & (columns < D)[None, :]
    tl.store(into + (slot + rows)[:, None] * D + columns[None, :], x.to(into.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def seen(queries, keys, count, CAUSAL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which queries, by row, see which keys; both of shapes that broadcast."""
    visible = keys < count
    if CAUSAL:
        visible = visible & (keys <= queries)
    return visible
