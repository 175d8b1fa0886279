"""Sequences that the processes of a group share out: each holds a slice of every row of a batch."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class SequenceSlice:
    """What this process holds of a batch of sequences: the process of rank r in the group has the ``length`` tokens
    from r * length on, and the last ones may be padding."""

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

    def real(self) -> Tensor | None:
        """(batch, length), True for this process's real tokens; None where there is no padding."""
        if self.lengths is None:
            return None
        return torch.arange(self.start, self.start + self.length, device=self.lengths.device) < self.lengths[:, None]
