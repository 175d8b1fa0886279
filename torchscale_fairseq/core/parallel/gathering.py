"""Experts of a few processes, each of which gets the tokens of all.

A process computes its experts' share of every token's output, and the shares are summed where the token came from. All
sizes are known before, so that nothing waits for the device and a CUDA graph can hold the exchange. That takes batches
of one size in all processes, of which somebody who compared them has to tell (``equal_batches``). Others are served by
``dispatch.AllToAllDispatcher``.

Axes: (tokens) of this process; (all tokens) of all processes, in the order of their ranks; (k) choices of a token.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..ops.compiled_kernel import compiled_kernel
from ..ops.merged_choices import MergedChoices, merge_choices
from ..ops.routing import Routing
from .groups import ExpertSplit, exchange_group

MOST_PROCESSES = 4
"""Processes that gather. With top-2 routing, two move no more rows than an all-to-all would, and four twice as many;
without a capacity, each makes room for the choices of all processes."""


# the first names are those of newer versions of torch, which warn of the others
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass
class _Batches:
    equal: bool = False


_batches = _Batches()  # compiled code heeds changes of an object, not those of a class on all versions of torch


@contextmanager
def equal_batches(equal: bool = True) -> Iterator[None]:
    """Within the block, all processes have batches of one size, without padding, or not. Whoever computes meanwhile
    goes by it, backward passes in threads of torch included."""
    before, _batches.equal = _batches.equal, equal
    try:
        yield
    finally:
        _batches.equal = before


def can_gather(split: ExpertSplit) -> bool:
    """Whether few enough processes hold these experts."""
    return 1 < split.size <= MOST_PROCESSES


def gathers(split: ExpertSplit) -> bool:
    """Whether the tokens of the current batches are gathered."""
    return _batches.equal and can_gather(split)


def gather_choices(tokens: Tensor, routing: Routing, split: ExpertSplit) -> tuple[Tensor, MergedChoices]:
    """All tokens, and which of their choices this process's experts serve. All processes call it together.

    Args:
        tokens: (tokens, width), of this process; equally many in each.
        routing: of these tokens.
        split: of the experts.

    Returns:
        (all tokens, width), and their choices among the local experts.
    """
    numbers = torch.cat((routing.row.flatten(), routing.load.int()))
    everyones, gate, numbers = _GatherTokens.apply(  # type: ignore[no-untyped-call]
        tokens.contiguous(), routing.gate.contiguous(), numbers, _numbers(split)
    )
    row, load = numbers.view(split.size, -1).split((routing.gate.numel(), split.count), 1)
    most = len(everyones) * min(routing.gate.size(1), split.local)
    if routing.capacity is not None:
        most = min(most, split.size * split.local * routing.capacity)
    local = range(split.first, split.first + split.local)
    return everyones, merge_choices(row.unflatten(1, routing.gate.shape).contiguous(), load, gate, local, most)


def sum_for_owners(outputs: Tensor, split: ExpertSplit) -> Tensor:
    """From this process's share of all tokens' outputs, (all tokens, width), to the sum of all processes' shares of its
    own tokens' outputs, (tokens, width). All processes call it together."""
    result: Tensor = _SumForOwners.apply(outputs.contiguous(), _numbers(split))  # type: ignore[no-untyped-call]
    return result


def _numbers(split: ExpertSplit) -> list[int]:
    """A split as an argument of operators."""
    return [split.count, split.rank, split.size, split.replicas]


def _larger(x: Tensor, others: list[Tensor], split: list[int]) -> list[Tensor]:
    return [part.new_empty(split[2] * len(part), *part.shape[1:]) for part in (x, *others)]


@compiled_kernel(_larger)
def gather_equal(x: Tensor, others: list[Tensor], split: list[int]) -> list[Tensor]:
    """Rows (tokens, ...) of all processes: (all tokens, ...) for each tensor, in one order in all processes."""
    results, group = _larger(x, others, split), exchange_group(ExpertSplit(*split))
    with _as_one(len(results), group):
        for part, result in zip((x, *others), results, strict=True):
            _all_gather(result, part, group=group)
    return results


def _smaller(x: Tensor, others: list[Tensor], split: list[int]) -> list[Tensor]:
    return [part.new_empty(len(part) // split[2], *part.shape[1:]) for part in (x, *others)]


@compiled_kernel(_smaller)
def sum_equal(x: Tensor, others: list[Tensor], split: list[int]) -> list[Tensor]:
    """Sums over processes of the rows (all tokens, ...) that are this process's: (tokens, ...) for each tensor."""
    results, group = _smaller(x, others, split), exchange_group(ExpertSplit(*split))
    with _as_one(len(results), group):
        for part, result in zip((x, *others), results, strict=True):
            _reduce_scatter(result, part, group=group)
    return results


def _as_one(operations: int, group: Any) -> AbstractContextManager[Any]:
    """Within the block, several operations of one kind are started as one kernel, if the processes communicate by NCCL.
    One after the other, two small ones after a large one take 30 us more on an H200."""
    together = operations > 1 and dist.get_backend(group) == "nccl"
    return dist._coalescing_manager(group) if together else nullcontext()


class _GatherTokens(torch.autograd.Function):
    """Tensors that are gathered together; the last one holds integers."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, gate: Tensor, numbers: Tensor, split: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.split = split
        everyones, gates, all_numbers = gather_equal(tokens, [gate, numbers], split)
        ctx.mark_non_differentiable(all_numbers)
        return everyones, gates, all_numbers

    @staticmethod
    def backward(ctx: Any, into_tokens: Tensor, into_gate: Tensor, _: Any) -> tuple[Tensor, Tensor, None, None]:
        tokens, gate = sum_equal(into_tokens.contiguous(), [into_gate.contiguous()], ctx.split)
        return tokens, gate, None, None


class _SumForOwners(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, split: list[int]) -> Tensor:
        ctx.split = split
        return sum_equal(outputs, [], split)[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gather_equal(gradient.contiguous(), [], ctx.split)[0], None
