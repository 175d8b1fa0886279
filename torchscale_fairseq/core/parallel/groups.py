"""Which experts each process holds, and which processes exchange tokens.

Processes r = 0, 1, ...; with at least as many experts as processes each holds an equal share, in order. With more
processes, every ``expert_count`` neighbours hold one expert each, and groups of them are replicas of each other.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed import ProcessGroup

from ..option_error import OptionError


@dataclass(frozen=True)
class ExpertSplit:
    """This process's share of ``count`` experts. By default all of them."""

    count: int
    rank: int = 0
    """Among the processes that hold one set of experts."""
    size: int = 1
    """Processes that hold one set of experts."""
    replicas: int = 1
    """Sets of experts."""

    @property
    def local(self) -> int:
        """Experts that this process holds."""
        return self.count // self.size

    @property
    def first(self) -> int:
        """Index of the first of them."""
        return self.rank * self.local

    @property
    def processes(self) -> int:
        """Processes that hold experts of this layer."""
        return self.size * self.replicas


_splitting: ContextVar[bool] = ContextVar("splitting_experts", default=False)


@contextmanager
def splitting_experts() -> Iterator[None]:
    """Layers with experts that are built meanwhile hold this process's share of them, if there are several
    processes; all processes then have to call them together."""
    before = _splitting.set(True)
    try:
        yield
    finally:
        _splitting.reset(before)


def split_experts(count: int) -> ExpertSplit:
    """How ``count`` experts are held where they are built now.

    Raises:
        OptionError: the number of processes neither divides nor is a multiple of count.
    """
    processes = dist.get_world_size() if _splitting.get() and dist.is_initialized() else 1
    if processes == 1:
        return ExpertSplit(count)
    if count % processes and processes % count:
        usable = [n for n in range(1, 4 * max(count, processes)) if n % processes == 0 or processes % n == 0]
        near = sorted(usable, key=lambda n: abs(n - count))[:2]
        raise OptionError(
            "moe_expert_count",
            count,
            f"{{moe_expert_count()}} must divide the number of processes ({processes}) or be a multiple of it",
            [{"moe_expert_count": n} for n in sorted(near)],
        )
    size = min(count, processes)
    return ExpertSplit(count, rank=dist.get_rank() % size, size=size, replicas=processes // size)


@functools.cache
def exchange_group(split: ExpertSplit) -> ProcessGroup:
    """The processes that hold one set of experts with this one. The first call is for all processes together."""
    return own_group([list(range(r * split.size, (r + 1) * split.size)) for r in range(split.replicas)])


@functools.cache
def replica_group(split: ExpertSplit) -> ProcessGroup:
    """The processes that hold the same experts as this one. The first call is for all processes together."""
    return own_group([list(range(r, split.processes, split.size)) for r in range(split.size)])


def own_group(members: list[list[int]]) -> ProcessGroup:
    """Make a group of each list of processes. All processes call it together.

    Returns:
        The group of this process.
    """
    group, _ = dist.new_subgroups_by_enumeration(members)
    assert group is not None
    return group
