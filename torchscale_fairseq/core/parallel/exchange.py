"""All-to-all between the processes of a group, sums over it, and all its rows."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def all_to_all(rows: Tensor, sent: list[int], received: list[int], group: ProcessGroup) -> Tensor:
    """Send neighbouring rows to the processes in turn, and get theirs. Gradients go the way back.

    Args:
        rows: (rows, ...), sorted by the process they go to.
        sent: rows for each process.
        received: rows from each process.
        group: the processes, all of which take part.

    Returns:
        (rows, ...), sorted by the process they come from.
    """
    result: Tensor = _AllToAll.apply(rows, sent, received, group)  # type: ignore[no-untyped-call]
    return result


def exchange(rows: Tensor, sent: list[int], received: list[int], group: ProcessGroup) -> Tensor:
    """All-to-all without autograd, for callers that compute the gradients themselves."""
    result = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(result, rows.contiguous(), received, sent, group=group)
    return result


def all_sum(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of all processes' tensors, of one shape. So is the gradient, of which each process has a part."""
    result: Tensor = _AllSum.apply(x, group)  # type: ignore[no-untyped-call]
    return result


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        result = x.clone()
        dist.all_reduce(result, group=group)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return exchange(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return exchange(gradient, ctx.received, ctx.sent, ctx.group), None, None, None


def gather_rows(rows: Tensor, group: ProcessGroup) -> tuple[Tensor, int]:
    """The rows of all processes, whose numbers may differ, in the order of their ranks. The gradient of a row is the
    sum of all processes'.

    Args:
        rows: (rows, ...), of this process.
        group: the processes, all of which take part.

    Returns:
        (all rows, ...), and the place of this process's first row in it.
    """
    counts = [torch.empty(1, dtype=torch.long, device=rows.device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(counts, torch.tensor([rows.size(0)], device=rows.device), group=group)
    sizes = [int(count) for count in counts]
    first = sum(sizes[: dist.get_rank(group)])
    result: Tensor = _GatherRows.apply(rows, sizes, first, group)  # type: ignore[no-untyped-call]
    return result, first


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], first: int, group: ProcessGroup) -> Tensor:
        ctx.own, ctx.group = slice(first, first + rows.size(0)), group
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: rows.size(0)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient[ctx.own], None, None, None
