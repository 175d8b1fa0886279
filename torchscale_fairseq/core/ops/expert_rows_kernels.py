"""Kernels of ``expert_rows``. Axes: (tokens), (k) choices of a token, (rows) at the experts, (width)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compiled_kernel import compiled_kernel

ROWS, COLUMNS = 8, 256
"""Size of the tile of a program."""


def _rows_like_choice(tokens: Tensor, choice: Tensor, k: int) -> Tensor:
    return tokens.new_empty(len(choice), tokens.size(1))


@compiled_kernel(_rows_like_choice)
def take(tokens: Tensor, choice: Tensor, k: int) -> Tensor:
    """(tokens, width) to (rows, width), the token of each choice (rows,) among k per token; zeros for choice -1."""
    count, width = len(choice), tokens.size(1)
    rows = tokens.new_empty(count, width)
    _take[_grid(count, width)](tokens, choice, rows, count, width, k, ROWS=ROWS, COLUMNS=COLUMNS)
    return rows


def _like_tokens(rows: Tensor, row: Tensor, gate: Tensor | None, factor: float) -> Tensor:
    return rows.new_empty(len(row), rows.size(1))


@compiled_kernel(_like_tokens)
def add(rows: Tensor, row: Tensor, gate: Tensor | None, factor: float) -> Tensor:
    """(rows, width) to (tokens, width), a multiple of the sum of each token's rows, in float32.

    Args:
        rows: to be added.
        row: (tokens, k), those of each token; -1 for none.
        gate: (tokens, k), their weights; None for 1.
        factor: of each sum.
    """
    count, width = len(row), rows.size(1)
    result = rows.new_empty(count, width)
    weights, k = row if gate is None else gate, row.size(1)
    _add[_grid(count, width)](rows, weights, row, result, factor, count, width, k, gate is not None, ROWS, COLUMNS)
    return result


def _like_rows_and_gate(
    gradient: Tensor, rows: Tensor, gate: Tensor, choice: Tensor, factor: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(gate)


@compiled_kernel(_like_rows_and_gate)
def add_backward(gradient: Tensor, rows: Tensor, gate: Tensor, choice: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Gradients of ``add`` for rows, zero where there is no choice, and for gate, zero for choices without a row.

    Args:
        gradient: (tokens, width), of its result.
        rows, gate: its arguments.
        choice: (rows,), the choice of each row; -1 for none.
        factor: of the gradient for rows.
    """
    into_rows, into_gate = torch.empty_like(rows), torch.zeros_like(gate)
    count, width = rows.shape
    _add_backward[(triton.cdiv(count, ROWS),)](
        gradient, rows, gate, choice, into_rows, into_gate, factor, count, width, gate.size(1), ROWS, COLUMNS
    )
    return into_rows, into_gate


def _grid(rows: int, width: int) -> tuple[int, int]:
    return triton.cdiv(rows, ROWS), triton.cdiv(width, COLUMNS)


@triton.jit  # type: ignore[untyped-decorator]
def _take(  # type: ignore[no-untyped-def]
    tokens, choice, rows, count, width, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    taken = tl.load(choice + row, mask=row < count, other=-1)
    source = (taken // K).to(tl.int64)[:, None] * width + column
    inside = (column < width)[None, :]
    x = tl.load(tokens + source, mask=(taken >= 0)[:, None] & inside, other=0.0)
    tl.store(rows + row[:, None] * width + column, x, mask=(row < count)[:, None] & inside)


@triton.jit  # type: ignore[untyped-decorator]
def _add(  # type: ignore[no-untyped-def]
    rows,
    gate,
    row,
    result,
    factor,
    count,
    width,
    K: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (column < width)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for j in tl.static_range(K):
        at = tl.load(row + token * K + j, mask=token < count, other=-1).to(tl.int64)
        x = tl.load(rows + at[:, None] * width + column, mask=(at >= 0)[:, None] & inside, other=0.0).to(tl.float32)
        if WEIGHTED:
            x *= tl.load(gate + token * K + j, mask=token < count, other=0.0).to(tl.float32)[:, None]
        total += x
    tl.store(
        result + token[:, None] * width + column,
        (total * factor).to(result.dtype.element_ty),
        mask=(token < count)[:, None] & inside,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _add_backward(  # type: ignore[no-untyped-def]
    gradient,
    rows,
    gate,
    choice,
    into_rows,
    into_gate,
    factor,
    count,
    width,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    taken = tl.load(choice + row, mask=row < count, other=-1).to(tl.int64)
    is_taken = taken >= 0
    weight = tl.load(gate + taken, mask=is_taken, other=0.0).to(tl.float32)
    along = tl.zeros((ROWS,), tl.float32)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        here = is_taken[:, None] & (column < width)[None, :]
        dy = tl.load(gradient + (taken // K)[:, None] * width + column, mask=here, other=0.0).to(tl.float32)
        x = tl.load(rows + row[:, None] * width + column, mask=here, other=0.0).to(tl.float32)
        along += tl.sum(dy * x, 1)
        tl.store(
            into_rows + row[:, None] * width + column,
            (dy * (weight * factor)[:, None]).to(into_rows.dtype.element_ty),
            mask=(row < count)[:, None] & (column < width)[None, :],
        )
    tl.store(into_gate + taken, along.to(into_gate.dtype.element_ty), mask=is_taken)
