"""Experts of a few processes, each of which gets the tokens of all.

A process computes its experts' share of every token's output, and the shares are summed where the token came from. All
sizes are known before, so that nothing waits for the device and a CUDA graph can hold the exchange. That takes batches
of one size in all processes, of which somebody who compared them has to tell (``equal_batches``). Others are served by
``dispatch.AllToAllDispatcher``.

Rows are on their way while the device computes what does not need them: tokens while they are routed, outputs while
the routing is reported, and the gradients of both while those of router and report are computed.

Axes: (tokens) of this process; (all tokens) of all processes, in the order of their ranks; (k) choices of a token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed._functional_collectives  # tells compiled code of the operations' results
from torch import Tensor

from ..ops.merged_choices import MergedChoices, merge_choices
from ..ops.routing import Routing
from .groups import ExpertSplit, exchange_group

MOST_PROCESSES = 4
"""Processes that gather. With top-2 routing, two move no more rows than an all-to-all would, and four twice as many;
without a capacity, each makes room for the choices of all processes."""


_collectives: Any = torch.ops._c10d_functional
"""Operations that begin, and one that waits: torch.compile keeps their order, and memory that they read or write."""


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


@dataclass(frozen=True)
class Begun:
    """Rows on their way between processes."""

    sent: Tensor
    """These rows. Autograd begins to send back their gradient where they arrive, and waits for it here;
    ``torch.autograd.detect_anomaly`` would read it before."""
    arriving: Tensor
    """Not to be read yet."""


def begin_gather(tokens: Tensor, split: ExpertSplit) -> Begun:
    """Begin to gather tokens, (tokens, width), equally many in each process. All processes call it together, and then
    ``gather_choices``."""
    sent = _begin(tokens)
    return Begun(sent, _gather(sent.detach(), *_group(split)))


def gather_choices(tokens: Begun, routing: Routing, split: ExpertSplit) -> tuple[Tensor, MergedChoices]:
    """All tokens, and which of their choices this process's experts serve. All processes call it together.

    Args:
        tokens: that ``begin_gather`` sent.
        routing: of these tokens.
        split: of the experts.

    Returns:
        (all tokens, width), and their choices among the local experts.
    """
    numbers = torch.cat((routing.row.flatten(), routing.load.int()))
    everyones, gate, numbers = _Gather.apply(  # type: ignore[no-untyped-call]
        tokens.sent, tokens.arriving, routing.gate, numbers, *_group(split)
    )
    row, load = numbers.split((routing.gate.numel(), split.count), 1)
    most = len(everyones) * min(routing.gate.size(1), split.local)
    if routing.capacity is not None:
        most = min(most, split.size * split.local * routing.capacity)
    local = range(split.first, split.first + split.local)
    return everyones, merge_choices(row.unflatten(1, routing.gate.shape).contiguous(), load, gate, local, most)


def begin_sum(outputs: Tensor, split: ExpertSplit) -> Begun:
    """Begin to add this process's share of all tokens' outputs, (all tokens, width), to those of the others. All
    processes call it together, and then ``finish_sum``."""
    sent = _begin(outputs)
    return Begun(sent, _sum(sent.detach(), *_group(split)))


def finish_sum(shares: Begun, split: ExpertSplit) -> Tensor:
    """The sum of all processes' shares of this process's own tokens' outputs, (tokens, width)."""
    result: Tensor = _Sum.apply(shares.sent, shares.arriving, *_group(split))  # type: ignore[no-untyped-call]
    return result


def _group(split: ExpertSplit) -> tuple[int, str]:
    """The processes that exchange rows, as operations take them."""
    return split.size, _group_name(split.count, split.rank, split.size, split.replicas)


def _group_name(*split: int) -> str:
    return exchange_group(ExpertSplit(*split)).group_name


# as torch.compiler.assume_constant_result does, which imports torch's compiler, in seconds; it takes no dataclass
_group_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _begin(rows: Tensor) -> Tensor:
    result: Tensor = _AwaitGradient.apply(rows.contiguous())  # type: ignore[no-untyped-call]
    return result


def _gather(rows: Tensor, processes: int, group: str) -> Tensor:
    """Rows of all processes, (all tokens, ...), on their way."""
    result: Tensor = _collectives.all_gather_into_tensor(rows, processes, group)
    return result


def _sum(rows: Tensor, processes: int, group: str) -> Tensor:
    """Sums over processes of the rows that are this process's, (tokens, ...), on their way."""
    result: Tensor = _collectives.reduce_scatter_tensor(rows, "sum", processes, group)
    return result


def _wait(rows: Tensor) -> Tensor:
    """Rows that have arrived. On a GPU, the stream waits, not the host."""
    result: Tensor = _collectives.wait_tensor(rows)
    return result


class _AwaitGradient(torch.autograd.Function):
    """Rows as they are. Made before what computes meanwhile, so that the gradient is awaited after its gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _wait(gradient)


class _Gather(torch.autograd.Function):
    """Waits for tokens, and gathers gates (tokens, k) and integers (numbers,) to (all tokens, k) and (processes,
    numbers). On the way back, the gradients of both begin before either is waited for."""

    @staticmethod
    def forward(
        ctx: Any, sent: Tensor, arriving: Tensor, gate: Tensor, numbers: Tensor, processes: int, group: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.group = processes, group
        tokens = _wait(arriving)
        bits = gate.to(torch.promote_types(gate.dtype, torch.float32)).flatten()
        mine = torch.cat((bits.view(torch.int32), numbers))  # as one tensor, which takes one kernel
        everyones = _wait(_gather(mine, processes, group)).view(processes, -1)
        gates, all_numbers = everyones.split((len(mine) - len(numbers), len(numbers)), 1)
        ctx.mark_non_differentiable(all_numbers)
        gates = gates.flatten().view(bits.dtype).view(-1, gate.size(1))
        # torch 2.11 compiles no gradient of what integers are seen as
        return tokens, gates.to(gate.dtype, copy=True), all_numbers

    @staticmethod
    def backward(
        ctx: Any, into_tokens: Tensor, into_gate: Tensor, _: Any
    ) -> tuple[Tensor | None, None, Tensor, None, None, None]:
        # begun if the tokens can have a gradient, for which they wait
        tokens = _sum(into_tokens.contiguous(), *ctx.group) if ctx.needs_input_grad[0] else None
        gate = _wait(_sum(into_gate.contiguous(), *ctx.group))
        return tokens, None, gate, None, None, None


class _Sum(torch.autograd.Function):
    """Waits for sums."""

    @staticmethod
    def forward(ctx: Any, sent: Tensor, arriving: Tensor, processes: int, group: str) -> Tensor:
        ctx.group = processes, group
        return _wait(arriving)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _gather(gradient.contiguous(), *ctx.group), None, None, None
