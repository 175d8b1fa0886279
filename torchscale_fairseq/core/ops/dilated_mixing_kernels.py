"""Kernels that add up what branches of dilated attention computed, each of which reads and writes every entry once.

Slots hold what belongs to the kept tokens of branches: (batch, heads, slots, ...). branches has four numbers for each:
tokens of a segment, ratio, slots of a segment, first slot.
"""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def mix(  # type: ignore[no-untyped-def]
    parts,
    logs,
    into,
    log_into,
    branches,
    lengths,
    sizes,
    BRANCHES: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum each token's parts, by the shares of their denominators if logarithms of these are given.

    Args:
        parts: (batch, heads, slots, D).
        logs: (batch, heads, slots), or None.
        into: (batch, seq, heads, D), the sums; zero where there is no part.
        log_into: shaped like logs, the logarithm of the whole denominator for each part of a token.
        lengths: (batch,), tokens of each row, or None for all.
        sizes: tokens, heads and slots.
    """
    length, heads, slots = sizes
    tokens, batch, head = _tokens(heads, BLOCK)
    end = length
    if lengths is not None:
        end = tl.load(lengths + batch)
    row = (batch * heads + head) * slots
    whole = tl.full((BLOCK,), float("-inf"), tl.float32)
    if logs is not None:
        whole = _denominator(logs + row, branches, tokens, head, end, BRANCHES, BLOCK)
    columns = tl.arange(0, WIDTH)
    sums = tl.zeros((BLOCK, WIDTH), tl.float32)
    for branch in tl.static_range(BRANCHES):
        slot, kept = _slot(branches[branch], tokens, head, end)
        place = (row + slot)[:, None] * D + columns[None, :]
        part = tl.load(parts + place, mask=kept[:, None] & (columns < D)[None, :], other=0.0).to(tl.float32)
        if logs is not None:
            log = tl.load(logs + row + slot, mask=kept, other=float("-inf"))
            part *= tl.exp2(log - tl.where(kept, whole, 0.0))[:, None]
            tl.store(log_into + row + slot, whole, mask=kept)
        sums += part
    place = ((batch * length + tokens) * heads + head)[:, None] * D + columns[None, :]
    inside = (tokens < length)[:, None] & (columns < D)[None, :]
    tl.store(into + place, sums.to(into.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _denominator(logs, branches, tokens, head, end, BRANCHES: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logarithm of the sum of each token's denominators; -inf where it has none."""
    total = tl.zeros((BLOCK,), tl.float32)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    for branch in tl.static_range(BRANCHES):
        slot, kept = _slot(branches[branch], tokens, head, end)
        log = tl.load(logs + slot, mask=kept, other=float("-inf"))
        higher = tl.maximum(top, log)
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(top - finite) + tl.exp2(log - finite)
        top = higher
    return top + tl.log2(total)


@triton.jit  # type: ignore[untyped-decorator]
def multiply(  # type: ignore[no-untyped-def]
    gradient,
    output,
    products,
    branches,
    sizes,
    strides,
    BRANCHES: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The product of each token's gradient and output, in the slots of all its parts.

    Args:
        gradient: (batch, seq, heads, D).
        output: shaped like it, contiguous.
        products: (batch, heads, slots).
        sizes: tokens, heads and slots.
        strides: of the first three axes of gradient.
    """
    length, heads, slots = sizes
    tokens, batch, head = _tokens(heads, BLOCK)
    columns = tl.arange(0, WIDTH)
    inside = (tokens < length)[:, None] & (columns < D)[None, :]
    given = (batch * strides[0] + tokens.to(tl.int64) * strides[1] + head * strides[2])[:, None] + columns[None, :]
    place = ((batch * length + tokens) * heads + head)[:, None] * D + columns[None, :]
    x = tl.load(gradient + given, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(output + place, mask=inside, other=0.0).to(tl.float32)
    for branch in tl.static_range(BRANCHES):
        slot, kept = _slot(branches[branch], tokens, head, length)
        tl.store(products + (batch * heads + head) * slots + slot, tl.sum(x * y, 1), mask=kept)


@triton.jit  # type: ignore[untyped-decorator]
def _tokens(heads, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tokens of this program, their batch row and their head."""
    return (
        tl.program_id(0) * BLOCK + tl.arange(0, BLOCK),
        (tl.program_id(1) // heads).to(tl.int64),
        tl.program_id(1) % heads,
    )


@triton.jit
def _slot(branch, tokens, head, end):  # type: ignore[no-untyped-def]
    """Where a branch keeps tokens, and whether it does."""
    segment, ratio, slots, first = branch
    within = tokens % segment
    return first + tokens // segment * slots + within // ratio, (within % ratio == head % ratio) & (tokens < end)
