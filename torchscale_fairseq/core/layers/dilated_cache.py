"""The cache of incremental decoding with dilated attention."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.dilated_pattern import Branch, head_offsets
from .cache import decay_keys


class DilatedCache:
    """Keys and values that a later query can still see: of each branch, those that a head keeps in the segment at hand.

    That is at most ceil(segment_length / ratio) per branch and head, whatever the length of the sequence, and no more
    than ceil(length / ratio) while it is short. Buffers are (batch, heads, slots, head_dim). The slots of the branches
    lie side by side; slot i of a branch holds the i-th token that the head keeps of its segment, and the next segment
    overwrites it. A token that several branches keep counts several times in the softmax, and is stored as often.

    Args:
        branches: segment lengths and ratios.
        heads: of the attention.
        torchscale_compatible: heads keep offsets in contiguous groups.
    """

    def __init__(self, branches: Sequence[Branch], heads: int, *, torchscale_compatible: bool = False) -> None:
        self.branches = list(branches)
        self.heads = heads
        self.contiguous = torchscale_compatible
        self.length = 0
        """Tokens seen, padding included."""
        self._slots = [0] * len(self.branches)
        self._key: Tensor | None = None
        self._value: Tensor | None = None

    def fill(self, key: Tensor, value: Tensor, key_padding_mask: Tensor | None) -> None:
        """Keep what counts of a prompt.

        Args:
            key, value: (batch, seq, heads, head_dim).
            key_padding_mask: (batch, seq), True for padding left or right of the tokens.
        """
        batch, self.length = key.shape[:2]
        real = key.new_ones(batch, self.length, dtype=torch.bool) if key_padding_mask is None else ~key_padding_mask
        starts, counts = real.to(torch.uint8).argmax(1)[:, None, None], real.sum(1)[:, None, None]
        self._slots = self._slots_needed()
        indices = []
        for branch, slots, offsets in zip(self.branches, self._slots, self._offsets(key.device), strict=True):
            within = offsets[:, None] + branch.ratio * torch.arange(slots, device=key.device)
            positions = counts // branch.segment_length * branch.segment_length + within  # batch, heads, slots
            indices.append((starts + positions).clamp_max(self.length - 1))  # slots of later tokens hold any
        index = torch.cat(indices, 2).unsqueeze(-1).expand(-1, -1, -1, key.size(-1))
        self._key, self._value = (x.transpose(1, 2).gather(2, index) for x in (key, value))

    def append(self, key: Tensor, value: Tensor, position: Tensor, real: Tensor) -> Tensor:
        """Keep one more token of each sequence.

        Args:
            key, value: (batch, heads, head_dim).
            position: (batch,), of the token among its sequence's real ones.
            real: (batch,), False for padding, which is not kept.

        Returns:
            (batch, heads, slots), True for what a query at this token sees.
        """
        self.length += 1
        self._grow()
        assert self._key is not None and self._value is not None
        visible = torch.zeros(self._key.shape[:3], dtype=torch.bool, device=key.device)
        first = 0
        for branch, slots, offsets in zip(self.branches, self._slots, self._offsets(key.device), strict=True):
            within = position % branch.segment_length
            slot = within // branch.ratio
            keeps = (within[:, None] % branch.ratio == offsets) & real[:, None]  # batch, heads
            for buffer, new in ((self._key, key), (self._value, value)):
                _put(buffer, first + slot, new, keeps)
            seen = torch.arange(slots, device=key.device) <= slot[:, None]
            visible[:, :, first : first + slots] = seen[:, None] & keeps[:, :, None]
            first += slots
        return visible

    def content(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all slots, (batch, slots, heads, head_dim)."""
        assert self._key is not None and self._value is not None
        return self._key.transpose(1, 2), self._value.transpose(1, 2)

    def decay_keys(self, distance: float) -> None:
        """Move the centre of xPos's scale on by ``distance`` in units of its base."""
        if self._key is not None:
            decay_keys(self._key, distance)

    def select(self, rows: Tensor) -> None:
        """Keep the given batch rows, in the given order."""
        if self._key is not None and self._value is not None:
            self._key, self._value = self._key.index_select(0, rows), self._value.index_select(0, rows)

    @property
    def batch_size(self) -> int:
        """Rows held."""
        return 0 if self._key is None else self._key.size(0)

    @property
    def slots(self) -> int:
        """Keys held per row and head."""
        return sum(self._slots)

    def _offsets(self, device: torch.device) -> list[Tensor]:
        return [head_offsets(self.heads, branch.ratio, device, contiguous=self.contiguous) for branch in self.branches]

    def _slots_needed(self) -> list[int]:
        return [-(-min(branch.segment_length, self.length) // branch.ratio) for branch in self.branches]

    def _grow(self) -> None:
        """Make room: branches that are full double, up to what a whole segment needs."""
        needed, before = self._slots_needed(), self._slots
        if all(n <= b for n, b in zip(needed, before, strict=True)):
            return
        limits = [-(-branch.segment_length // branch.ratio) for branch in self.branches]
        self._slots = [
            b if n <= b else min(max(n, 2 * b), limit) for n, b, limit in zip(needed, before, limits, strict=True)
        ]
        self._key, self._value = (self._spread(x, before) for x in (self._key, self._value))

    def _spread(self, buffer: Tensor | None, before: list[int]) -> Tensor:
        """The buffer with each branch's slots followed by empty ones."""
        assert buffer is not None
        parts = buffer.split(before, 2)
        return torch.cat([F.pad(x, (0, 0, 0, n - x.size(2))) for x, n in zip(parts, self._slots, strict=True)], 2)


def _put(buffer: Tensor, slot: Tensor, new: Tensor, keeps: Tensor) -> None:
    """Write (batch, heads, head_dim) into each row's slot (batch,), for the heads that keep it."""
    index = slot[:, None, None, None].expand(*new.shape[:2], 1, new.size(2))
    kept = torch.where(keeps[:, :, None, None], new.unsqueeze(2).to(buffer.dtype), buffer.gather(2, index))
    buffer.scatter_(2, index, kept)
