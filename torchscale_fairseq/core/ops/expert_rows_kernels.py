"""Kernels of ``expert_rows``. Axes: (tokens), (k) choices of a token, (rows) at the experts, (width)."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 8, 256
"""Of the tile of a program."""


@torch.library.custom_op("torchscale_fairseq::take_rows", mutates_args=())
def take(tokens: Tensor, row: Tensor, choice: Tensor) -> Tensor:
    """Rows (rows, width) of tokens (tokens, width); row and choice are those of ``expert_rows.Places``."""
    width = tokens.size(1)
    rows = tokens.new_empty(len(choice), width)
    _take[_grid(len(choice), width)](tokens, choice, rows, len(choice), width, row.size(1), ROWS=ROWS, COLUMNS=COLUMNS)
    return rows


@take.register_fake
def _(tokens: Tensor, row: Tensor, choice: Tensor) -> Tensor:
    return tokens.new_empty(len(choice), tokens.size(1))


def _keep_row(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _take_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return add(gradient.contiguous(), *ctx.saved_tensors), None, None


take.register_autograd(_take_backward, setup_context=_keep_row)


@torch.library.custom_op("torchscale_fairseq::add_rows", mutates_args=())
def add(rows: Tensor, row: Tensor) -> Tensor:
    """(rows, width) to (tokens, width), the sum of each token's rows, in float32."""
    return _sums(rows, None, row)


@add.register_fake
def _(rows: Tensor, row: Tensor) -> Tensor:
    return rows.new_empty(len(row), rows.size(1))


@torch.library.custom_op("torchscale_fairseq::mix_rows", mutates_args=())
def mix(rows: Tensor, gate: Tensor, row: Tensor, choice: Tensor) -> Tensor:
    """(rows, width) to (tokens, width), the sum of each token's rows with the weights gate (tokens, k), in float32."""
    return _sums(rows, gate, row)


@mix.register_fake
def _(rows: Tensor, gate: Tensor, row: Tensor, choice: Tensor) -> Tensor:
    return rows.new_empty(len(row), rows.size(1))


@torch.library.custom_op("torchscale_fairseq::mix_rows_backward", mutates_args=())
def mix_backward(gradient: Tensor, rows: Tensor, gate: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``mix`` for rows, zero where there is no choice, and for gate, zero for choices that are not kept.

    Args:
        gradient: (tokens, width), of its result.
        rows, gate, choice: its arguments.
    """
    into_rows, into_gate = torch.empty_like(rows), torch.zeros_like(gate)
    count, width = rows.shape
    _mix_backward[(triton.cdiv(count, ROWS),)](
        gradient, rows, gate, choice, into_rows, into_gate, count, width, gate.size(1), ROWS=ROWS, COLUMNS=COLUMNS
    )
    return into_rows, into_gate


@mix_backward.register_fake
def _(gradient: Tensor, rows: Tensor, gate: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(gate)


def _keep_mixed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, gate, _, choice = inputs
    ctx.save_for_backward(rows, gate, choice)


def _differentiate_mix(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return *mix_backward(gradient.contiguous(), *ctx.saved_tensors), None, None


mix.register_autograd(_differentiate_mix, setup_context=_keep_mixed)


def _sums(rows: Tensor, gate: Tensor | None, row: Tensor) -> Tensor:
    width = rows.size(1)
    result = rows.new_empty(len(row), width)
    _add[_grid(len(row), width)](
        rows, row if gate is None else gate, row, result, len(row), width, row.size(1), gate is not None, ROWS, COLUMNS
    )
    return result


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
        total.to(result.dtype.element_ty),
        mask=(token < count)[:, None] & inside,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _mix_backward(  # type: ignore[no-untyped-def]
    gradient,
    rows,
    gate,
    choice,
    into_rows,
    into_gate,
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
            (dy * weight[:, None]).to(into_rows.dtype.element_ty),
            mask=(row < count)[:, None] & (column < width)[None, :],
        )
    tl.store(into_gate + taken, along.to(into_gate.dtype.element_ty), mask=is_taken)
