"""Rows that belong to groups: where each group's are."""

from functools import cached_property

import torch
from torch import Tensor


class Segments:
    """Rows of a group (an expert) are neighbours, groups follow each other.

    What is derived from the counts is computed once, when it is first used; with ``rows`` at once, which compiled code
    can follow.

    Args:
        counts: (groups,), rows of each, on the device of the rows.
        rows: how many rows there are, of which those behind the last group's belong to none and hold anything. With
            it kernels leave the counts on the device (``grouped_kernels``). None: all rows belong to groups.
        sizes: the counts, if the host has them.
    """

    gradient_divisor: float = 1
    """Whoever multiplies rows by parameters of their groups divides the gradients of these parameters by it."""

    def __init__(self, counts: Tensor, rows: int | None = None, *, sizes: list[int] | None = None):
        self.counts, self.rows = counts, rows
        if sizes is not None:
            self.sizes = sizes
        self.ends = counts.cumsum(0, dtype=torch.int32)
        """(groups,) int32, the row behind each group's last."""
        if rows is not None:
            row = torch.arange(rows, dtype=torch.int32, device=counts.device)
            self.group = torch.searchsorted(self.ends, row, right=True, out_int32=True)

    @cached_property
    def sizes(self) -> list[int]:
        """Rows of each group; waits for the device, unless the host has them."""
        sizes: list[int] = self.counts.tolist()
        return sizes

    @cached_property
    def groups(self) -> Tensor:
        """(groups,), their numbers."""
        return torch.arange(len(self.sizes), device=self.counts.device)

    @cached_property
    def group(self) -> Tensor:
        """(rows,), the group of each; the number of groups for rows of none."""
        return self.groups.repeat_interleave(self.counts, output_size=sum(self.sizes))

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
        group = self.group if self.rows is None else self.group.clamp(max=len(parameter) - 1)
        return parameter.index_select(0, group)

    def filled(self, x: Tensor) -> Tensor:
        """(rows, a) to (groups, rows of the largest, a), with zeros behind each group's rows."""
        filled = x.new_zeros(len(self.sizes), max(self.sizes), x.size(1))
        filled.flatten(0, 1).index_copy_(0, self.places, x)
        return filled
