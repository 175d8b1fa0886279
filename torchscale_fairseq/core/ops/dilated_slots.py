"""Slots of the parts of dilated attention: one for each token, head and branch that keeps the token.

Slots of a segment are neighbours, in the order of its tokens; segments follow each other, and so do branches.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ALIGNMENT = 16
"""Slots of a segment are a multiple of it. Tensor descriptors of numbers in float32 begin at multiples of four, and
Triton compiles anew for a number that 16 does not divide."""


@dataclass(frozen=True)
class Slots:
    """The slots of a head in sequences of one length."""

    branches: tuple[tuple[int, int], ...]
    """Tokens of a segment, and ratio."""
    length: int

    @cached_property
    def rows(self) -> tuple[tuple[int, int, int, int], ...]:
        """Tokens of a segment, ratio, slots of a segment and first slot; one entry per branch."""
        rows, first = [], 0
        for given, ratio in self.branches:
            segment = min(given, self.length)
            slots = -(-segment // (ratio * ALIGNMENT)) * ALIGNMENT
            rows.append((segment, ratio, slots, first))
            first += -(-self.length // segment) * slots
        return tuple(rows)

    @cached_property
    def total(self) -> int:
        """Number of slots, of all branches together."""
        segment, _, slots, first = self.rows[-1]
        return first + -(-self.length // segment) * slots


def slots_of(segment_lengths: Sequence[int], ratios: Sequence[int], length: int) -> Slots:
    """The slots of branches in sequences of a length, computed once."""
    return _slots_of(tuple(zip(segment_lengths, ratios, strict=True)), length)


@functools.lru_cache(maxsize=256)
def _slots_of(branches: tuple[tuple[int, int], ...], length: int) -> Slots:
    return Slots(branches, length)


@functools.lru_cache(maxsize=256)
def tiles(slots: Slots, block: int, device: torch.device, *, last_first: bool) -> Tensor:
    """Blocks of neighbouring kept tokens, as ``dilated_tiles.place`` reads them.

    Args:
        slots: where they are.
        block: tokens of a tile.
        device: of the result.
        last_first: a segment's last tile comes first; programs with the most work should begin first.

    Returns:
        (tiles, 5) int32: the segment's first token, its tokens, the ratio, the tile's first row in the segment, and the
        segment's first slot.
    """
    tables = []
    for segment, ratio, count, first in slots.rows:
        number = torch.arange(-(-slots.length // segment))[:, None]
        row = torch.arange(0, -(-segment // ratio), block)
        columns = number * segment, segment, ratio, row.flip(0) if last_first else row, first + number * count
        expanded = [torch.as_tensor(x).expand(len(number), len(row)) for x in columns]
        tables.append(torch.stack(expanded, -1).flatten(0, 1))
    return torch.cat(tables).int().to(device)
