"""Sequences that are split over the processes of a group: each holds a slice of every row of a batch."""

import functools
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from ..ops.positions import FIRST_POSITION, PADDING_POSITION
from ..option_error import OptionError
from .groups import own_group


@dataclass(frozen=True)
class SequenceSlice:
    """The slice of a batch of sequences that this process holds: the process of rank r in the group has the ``length``
    tokens from r * length on, and the last ones may be padding."""

    group: ProcessGroup
    """The processes that share the sequences out."""
    length: int
    """Tokens per process, of each row."""
    lengths: Tensor | None = None
    """(batch,), real tokens of each row in all processes together; rows begin with a real token, and what follows is
    padding. None: there is no padding."""

    @property
    def rank(self) -> int:
        """This process in the group."""
        return dist.get_rank(self.group)

    @property
    def size(self) -> int:
        """Processes in the group."""
        return dist.get_world_size(self.group)

    @property
    def start(self) -> int:
        """This process's first token."""
        return self.rank * self.length

    @property
    def total(self) -> int:
        """Tokens of each row in all processes together."""
        return self.size * self.length

    def to(self, device: torch.device) -> "SequenceSlice":
        """A copy with its tensors on a device."""
        return self if self.lengths is None else replace(self, lengths=self.lengths.to(device, non_blocking=True))

    def positions(self, device: torch.device) -> Tensor:
        """(1, length), where this process's tokens stand in their sequence, counted from 0."""
        return torch.arange(self.start, self.start + self.length, device=device)[None]

    def real(self) -> Tensor | None:
        """(batch, length), True for this process's real tokens; None where there is no padding."""
        return None if self.lengths is None else self.positions(self.lengths.device) < self.lengths[:, None]

    def padding_mask(self) -> Tensor | None:
        """The opposite."""
        real = self.real()
        return None if real is None else ~real

    def position_rows(self, device: torch.device) -> Tensor:
        """(batch or 1, length), rows of the position table (``ops.positions``)."""
        rows, real = self.positions(device) + FIRST_POSITION, self.real()
        return rows if real is None else rows.where(real, PADDING_POSITION)


@functools.cache
def sequence_group(size: int) -> ProcessGroup:
    """This process and its neighbours, ``size`` together, that share sequences. The first call is for all processes
    together.

    Raises:
        OptionError: size does not divide the number of processes.
    """
    processes = dist.get_world_size()
    if size < 1 or processes % size:
        divisors = [n for n in range(2, processes) if processes % n == 0]
        raise OptionError(
            "seq_parallel_size",
            size,
            f"{{seq_parallel_size()}} must divide the number of processes ({processes})",
            [*({"seq_parallel_size": n} for n in divisors), {"seq_parallel_size": None}],
        )
    return own_group([list(range(first, first + size)) for first in range(0, processes, size)])
