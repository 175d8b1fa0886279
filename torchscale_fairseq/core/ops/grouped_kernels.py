"""Kernels on rows of groups whose sizes stay on the device. Rows behind the last group's hold anything and are left.

Axes: (rows), (groups), (width). Ends (groups,) int32 are those of ``segments.Segments``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compiled_kernel import compiled_kernel

ROWS, COLUMNS = 8, 256
"""Size of the tile of a program."""
PROGRAMS = 1024
"""About as many programs share the sums of all groups."""


@compiled_kernel(lambda rows, bias, group: None, mutates=("rows",))
def add_group_bias(rows: Tensor, bias: Tensor, group: Tensor) -> None:
    """Add to each row, in place, its group's bias, (groups, width). Group, (rows,) int32, is that of ``Segments``."""
    count, width = rows.shape
    _add_bias[triton.cdiv(count, ROWS), triton.cdiv(width, COLUMNS)](
        rows, bias, group, count, width, len(bias), ROWS=ROWS, COLUMNS=COLUMNS
    )


@compiled_kernel(lambda result, ends: None, mutates=("result",))
def zero_empty_groups(result: Tensor, ends: Tensor) -> None:
    """Set the entries of groups without rows to zero, in place; result is (groups, ...)."""
    size = result[0].numel()
    _zero_empty[len(ends), triton.cdiv(size, 4096)](result, ends, size, BLOCK=4096)


@compiled_kernel(lambda rows, ends: rows.new_empty(len(ends), rows.size(1)))
def group_sums(rows: Tensor, ends: Tensor) -> Tensor:
    """(rows, width) to (groups, width), the sum of each group's rows, taken in float32 and in a fixed order."""
    width, groups = rows.size(1), len(ends)
    programs = max(1, PROGRAMS // groups // triton.cdiv(width, COLUMNS))
    parts = torch.empty(programs, groups, width, device=rows.device)
    _sums[groups, triton.cdiv(width, COLUMNS), programs](
        rows, ends, parts, width, groups, programs, ROWS=2 * ROWS, COLUMNS=COLUMNS
    )
    return parts.sum(0).to(rows.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _add_bias(  # type: ignore[no-untyped-def]
    rows, bias, group, count, width, groups, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    of_row = tl.load(group + row, mask=row < count, other=groups).to(tl.int64)
    here = (of_row < groups)[:, None] & (column < width)[None, :]
    at = rows + row[:, None] * width + column
    x = tl.load(at, mask=here, other=0.0).to(tl.float32)
    added = tl.load(bias + of_row[:, None] * width + column, mask=here, other=0.0).to(tl.float32)
    tl.store(at, (x + added).to(rows.dtype.element_ty), mask=here)


@triton.jit  # type: ignore[untyped-decorator]
def _zero_empty(result, ends, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    group = tl.program_id(0)
    start = tl.load(ends + group - 1, mask=group > 0, other=0)
    if start == tl.load(ends + group):
        entry = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        zeros = tl.zeros((BLOCK,), result.dtype.element_ty)
        tl.store(result + group.to(tl.int64) * size + entry, zeros, mask=entry < size)


@triton.jit  # type: ignore[untyped-decorator]
def _sums(  # type: ignore[no-untyped-def]
    rows, ends, parts, width, groups, programs, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    group, program = tl.program_id(0), tl.program_id(2)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    start = tl.load(ends + group - 1, mask=group > 0, other=0)
    end = tl.load(ends + group)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(start + program * ROWS, end, programs * ROWS):
        row = first + tl.arange(0, ROWS).to(tl.int64)
        here = (row < end)[:, None] & (column < width)[None, :]
        total += tl.load(rows + row[:, None] * width + column, mask=here, other=0.0).to(tl.float32)
    at = (program.to(tl.int64) * groups + group) * width + column
    tl.store(parts + at, tl.sum(total, 0), mask=column < width)
