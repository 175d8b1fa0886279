"""Kernels of dilated attention: all branches in one launch, with nothing gathered before or scattered after it.

Logarithms are to the base of two. ``dilated_launches`` starts the kernels and explains their arguments.
"""

import triton
import triton.language as tl

from .dilated_tiles import keep, place, rows_of, scalars_of, seen


@triton.jit  # type: ignore[untyped-decorator]
def attend(  # type: ignore[no-untyped-def]
    query,
    key,
    value,
    parts,
    logs,
    table,
    lengths,
    sizes,
    strides,
    scale,
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The softmax of each tile of queries over its segment's keys."""
    batch, head, token, ratio, first, count, slot = place(table, lengths, sizes)
    if first >= count:
        return
    at = (batch, head, token, ratio)
    q = rows_of(query, strides[0], at, count, D, WIDTH, QUERIES).load([first, 0])
    keys = rows_of(key, strides[1], at, count, D, WIDTH, KEYS)
    values = rows_of(value, strides[2], at, count, D, WIDTH, KEYS)
    rows = first + tl.arange(0, QUERIES)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    whole, end = _bounds(first, count, CAUSAL, QUERIES, KEYS)
    for n in tl.range(0, whole, KEYS, num_stages=STAGES):
        top, total, sums = _look(top, total, sums, q, keys, values, rows, n, count, scale, CAUSAL, KEYS, False)
    for n in tl.range(whole, end, KEYS, num_stages=STAGES):
        top, total, sums = _look(top, total, sums, q, keys, values, rows, n, count, scale, CAUSAL, KEYS, True)
    keep(parts, sums / total[:, None], slot, rows, count, D, WIDTH)
    tl.store(logs + slot + rows, top + tl.log2(total), mask=rows < count)


@triton.jit  # type: ignore[untyped-decorator]
def _bounds(first, count, CAUSAL: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The keys that all queries of a tile see, and those that any does: blocks end at the two numbers."""
    if CAUSAL:
        whole, end = first, tl.minimum(first + QUERIES, count)
    else:
        whole, end = count // KEYS * KEYS, count
    return whole, end


@triton.jit  # type: ignore[untyped-decorator]
def _look(  # type: ignore[no-untyped-def]
    top,
    total,
    sums,
    q,
    keys,
    values,
    rows,
    n,
    count,
    scale,
    CAUSAL: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """A block of keys more in a softmax."""
    k, v = keys.load([n, 0]), values.load([n, 0])
    scores = tl.dot(q, tl.trans(k))
    if MASKED:
        visible = seen(rows[:, None], n + tl.arange(0, KEYS)[None, :], count, CAUSAL)
        scores = tl.where(visible, scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - higher[:, None])
    shrink = tl.exp2(top - higher)
    sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None])
    return higher, total * shrink + tl.sum(weights, 1), sums


@triton.jit  # type: ignore[untyped-decorator]
def differentiate_keys(  # type: ignore[no-untyped-def]
    gradient,
    query,
    key,
    value,
    logs,
    products,
    of_key,
    of_value,
    table,
    lengths,
    sizes,
    strides,
    scale,
    factor,
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of each tile of keys and values."""
    batch, head, token, ratio, first, count, slot = place(table, lengths, sizes)
    if first >= count:
        return
    at = (batch, head, token, ratio)
    k = rows_of(key, strides[1], at, count, D, WIDTH, KEYS).load([first, 0])
    v = rows_of(value, strides[2], at, count, D, WIDTH, KEYS).load([first, 0])
    queries = rows_of(query, strides[0], at, count, D, WIDTH, QUERIES)
    gradients = rows_of(gradient, strides[3], at, count, D, WIDTH, QUERIES)
    upstream = (gradients, scalars_of(logs, slot, count, QUERIES), scalars_of(products, slot, count, QUERIES))
    rows = first + tl.arange(0, KEYS)
    of_k = tl.zeros((KEYS, WIDTH), tl.float32)
    of_v = tl.zeros((KEYS, WIDTH), tl.float32)
    begin, masked = _masked(first, count, CAUSAL, QUERIES, KEYS)
    for m in tl.range(begin, tl.minimum(masked, count), QUERIES, num_stages=STAGES):
        of_k, of_v = _turn(of_k, of_v, k, v, queries, upstream, rows, m, count, scale, CAUSAL, QUERIES, True)
    for m in tl.range(masked, count, QUERIES, num_stages=STAGES):
        of_k, of_v = _turn(of_k, of_v, k, v, queries, upstream, rows, m, count, scale, CAUSAL, QUERIES, False)
    keep(of_key, of_k * factor, slot, rows, count, D, WIDTH)
    keep(of_value, of_v, slot, rows, count, D, WIDTH)


@triton.jit  # type: ignore[untyped-decorator]
def _masked(first, count, CAUSAL: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first query that sees a key of the tile, and the first from which on all see all; blocks begin there."""
    begin, masked = 0, 0
    if CAUSAL:
        begin, masked = first // QUERIES * QUERIES, first + KEYS
    if first + KEYS > count:
        masked = count
    return begin, begin + tl.cdiv(masked - begin, QUERIES) * QUERIES


@triton.jit  # type: ignore[untyped-decorator]
def _turn(  # type: ignore[no-untyped-def]
    of_k,
    of_v,
    k,
    v,
    queries,
    upstream,
    rows,
    m,
    count,
    scale,
    CAUSAL: tl.constexpr,
    QUERIES: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add what a block of queries contributes: nothing behind the last query, where descriptors read zeros."""
    gradients, logs, products = upstream
    q, gradient = queries.load([m, 0]), gradients.load([m, 0])
    log = logs.load([0, m]).reshape(QUERIES)
    product = products.load([0, m]).reshape(QUERIES)
    weights = tl.exp2(tl.dot(k, tl.trans(q)) * scale - log[None, :])
    if MASKED:
        visible = seen((m + tl.arange(0, QUERIES))[None, :], rows[:, None], count, CAUSAL)
        weights = tl.where(visible, weights, 0.0)
    of_v = tl.dot(weights.to(gradient.dtype), gradient, of_v)
    of_weights = tl.dot(v, tl.trans(gradient))
    of_scores = (weights * (of_weights - product[None, :])).to(q.dtype)
    return tl.dot(of_scores, q, of_k), of_v


@triton.jit  # type: ignore[untyped-decorator]
def differentiate_queries(  # type: ignore[no-untyped-def]
    gradient,
    query,
    key,
    value,
    logs,
    products,
    of_query,
    table,
    lengths,
    sizes,
    strides,
    scale,
    factor,
    CAUSAL: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of each tile of queries."""
    batch, head, token, ratio, first, count, slot = place(table, lengths, sizes)
    if first >= count:
        return
    at = (batch, head, token, ratio)
    rows = first + tl.arange(0, QUERIES)
    q = rows_of(query, strides[0], at, count, D, WIDTH, QUERIES).load([first, 0])
    upstream = (
        rows_of(gradient, strides[3], at, count, D, WIDTH, QUERIES).load([first, 0]),
        tl.load(logs + slot + rows, mask=rows < count, other=float("inf"))[:, None],
        tl.load(products + slot + rows, mask=rows < count, other=0.0)[:, None],
    )
    keys = rows_of(key, strides[1], at, count, D, WIDTH, KEYS)
    values = rows_of(value, strides[2], at, count, D, WIDTH, KEYS)
    of_q = tl.zeros((QUERIES, WIDTH), tl.float32)
    whole, end = _bounds(first, count, CAUSAL, QUERIES, KEYS)
    for n in tl.range(0, whole, KEYS, num_stages=STAGES):
        of_q = _return(of_q, q, upstream, keys, values, rows, n, count, scale, CAUSAL, KEYS, False)
    for n in tl.range(whole, end, KEYS, num_stages=STAGES):
        of_q = _return(of_q, q, upstream, keys, values, rows, n, count, scale, CAUSAL, KEYS, True)
    keep(of_query, of_q * factor, slot, rows, count, D, WIDTH)


@triton.jit  # type: ignore[untyped-decorator]
def _return(  # type: ignore[no-untyped-def]
    of_q,
    q,
    upstream,
    keys,
    values,
    rows,
    n,
    count,
    scale,
    CAUSAL: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add what a block of keys contributes to the gradient of queries."""
    k, v = keys.load([n, 0]), values.load([n, 0])
    gradient, log, product = upstream
    weights = tl.exp2(tl.dot(q, tl.trans(k)) * scale - log)
    if MASKED:
        visible = seen(rows[:, None], n + tl.arange(0, KEYS)[None, :], count, CAUSAL)
        weights = tl.where(visible, weights, 0.0)
    of_weights = tl.dot(gradient, tl.trans(v))
    return tl.dot((weights * (of_weights - product)).to(k.dtype), k, of_q)
