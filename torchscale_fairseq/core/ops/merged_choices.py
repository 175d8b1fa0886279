"""Choices that several processes made for their tokens, as those see them who hold some of the experts.

Axes: (processes) that decided; (tokens) of each, (all tokens) of all; (k) choices of a token; (experts) all of them,
(local experts) those that are held.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class MergedChoices:
    """``routing.Choices`` of all tokens among the local experts."""

    gate: Tensor
    """(all tokens, k)."""
    load: Tensor
    """(local experts,)."""
    most: int
    row: Tensor
    """(all tokens, k) int32; an expert's rows are those of one process after the other."""

    @cached_property
    def _order(self) -> Tensor:
        """(kept choices,), the choice in each row, as an index into the flattened ``row``."""
        row = self.row.flatten()
        return row.argsort()[int((row < 0).sum()) :]

    @property
    def token(self) -> Tensor:
        """(kept choices,), the token of each row."""
        return self._order // self.row.size(1)

    @property
    def weight(self) -> Tensor:
        """(kept choices,), the gate of each row."""
        return self.gate.flatten()[self._order]


def merge_choices(row: Tensor, load: Tensor, gate: Tensor, local: range, most: int) -> MergedChoices:
    """The choices of all processes that fall on local experts.

    Args:
        row: (processes, tokens, k) int32, where each choice stands among those of its process in the order of all
            experts; -1 for choices that are not kept.
        load: (processes, experts) int32, kept choices.
        gate: (all tokens, k), weights.
        local: the local experts.
        most: upper bound of the number of choices.
    """
    ends = load.cumsum(1, dtype=torch.int32)
    expert = torch.searchsorted(ends, row.flatten(1), right=True)
    own = load[:, local.start : local.stop]
    counts = own.sum(0)
    firsts = counts.cumsum(0) - counts + own.cumsum(0) - own  # (processes, local experts), of the merged rows
    moved = firsts - (ends - load)[:, local.start : local.stop]
    is_local = (row.flatten(1) >= 0) & (expert >= local.start) & (expert < local.stop)
    place = row.flatten(1) + moved.gather(1, (expert - local.start).clamp(0, len(local) - 1))
    return MergedChoices(gate, counts, most, torch.where(is_local, place, -1).int().view_as(gate))
