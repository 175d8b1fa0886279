"""Rows that belong to groups: where each group's are."""

from functools import cached_property

import torch
from torch import Tensor


class Segments:
    """Rows of a group (an expert) are neighbours, groups follow each other.

    What is derived from the counts is computed once, when it is first used.

    Args:
        counts: (groups,), rows of each, on the device of the rows.
    """

    def __init__(self, counts: Tensor):
        self.counts = counts

    @cached_property
    def sizes(self) -> list[int]:
        """Rows of each group; waits for the device."""
        sizes: list[int] = self.counts.tolist()
        return sizes

    @cached_property
    def groups(self) -> Tensor:
        """(groups,), their numbers."""
        return torch.arange(len(self.sizes), device=self.counts.device)

    @cached_property
    def group(self) -> Tensor:
        """(rows,), the group of each."""
        return self.groups.repeat_interleave(self.counts, output_size=sum(self.sizes))

    @cached_property
    def ends(self) -> Tensor:
        """(groups,) int32, the row behind each group's last."""
        return self.counts.cumsum(0, dtype=torch.int32)

    @cached_property
    def places(self) -> Tensor:
        """(rows,), where each would be if all groups were filled up to the size of the largest."""
        starts = self.counts.cumsum(0) - self.counts
        row = torch.arange(sum(self.sizes), device=self.counts.device)
        return row + (self.groups * max(self.sizes) - starts)[self.group]

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """(rows, ...) to each group's."""
        return x.split(self.sizes)

    def spread(self, parameter: Tensor) -> Tensor:
        """(groups, a) to (rows, a), for each row that of its group."""
        return parameter.index_select(0, self.group)

    def filled(self, x: Tensor) -> Tensor:
        """(rows, a) to (groups, rows of the largest, a), with zeros behind each group's rows."""
        filled = x.new_zeros(len(self.sizes), max(self.sizes), x.size(1))
        filled.flatten(0, 1).index_copy_(0, self.places, x)
        return filled
