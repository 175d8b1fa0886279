"""Where the tokens that a branch of dilated attention keeps stand in memory.

Axes: batch, seq, heads; (segments) of a branch; (kept) tokens of a segment. All segments of a branch have equally many
places; in one that ends early, the last places hold no token.
"""

import torch
from torch import Tensor

from .dilated_pattern import Branch


class Rows:
    """Kept tokens among the rows (batch * seq * heads, ...) of a sequence.

    Positions past the end of a segment or sequence are placeholders: ``take`` reads an arbitrary row for them, ``put``
    and ``add`` write to a scratch row after the last one.
    """

    def __init__(self, index: Tensor | slice, kept: int, heads: int):
        self.index, self.kept, self.heads = index, kept, heads

    def take(self, x: Tensor) -> Tensor:
        """(batch, seq, heads, ...) to (batch * segments, heads, kept, ...)."""
        rows = x.flatten(0, 2)
        if isinstance(self.index, slice):
            rows = rows[self.index]
        else:
            rows = rows.index_select(0, self.index.clamp(max=rows.size(0) - 1))
        return rows.unflatten(0, (-1, self.kept, self.heads)).transpose(1, 2)

    def put(self, into: Tensor, x: Tensor) -> None:
        """Replace rows (batch * seq * heads + 1, ...) by kept tokens as ``take`` gives them."""
        if isinstance(self.index, slice):
            into[self.index] = x.transpose(1, 2).flatten(0, 2)
        else:
            into.index_copy_(0, self.index, x.transpose(1, 2).flatten(0, 2))

    def add(self, into: Tensor, x: Tensor) -> None:
        """Add to the rows."""
        if isinstance(self.index, slice):
            into[self.index] += x.transpose(1, 2).flatten(0, 2)
        else:
            into.index_add_(0, self.index, x.transpose(1, 2).flatten(0, 2))


class Layout:
    """How a branch's kept tokens lie in a sequence, or in a stretch of one.

    Args:
        branch: the pattern.
        offsets: (heads,), as ``head_offsets`` gives them.
        batch: sequences.
        length: tokens.
    """

    def __init__(self, branch: Branch, offsets: Tensor, batch: int, length: int):
        self.offsets, self.batch, self.length, self.ratio = offsets, batch, length, branch.ratio
        self.segment = min(branch.segment_length, length)
        self.segments = -(-length // self.segment)
        self.kept = -(-self.segment // branch.ratio)
        self.whole = length % self.segment == 0 and self.segment % branch.ratio == 0

    def rows(self, start: int, total: int) -> Rows:
        """Where they lie in sequences of ``total`` tokens, in which this is the stretch from ``start`` on."""
        heads = self.offsets.numel()
        if self.whole and self.ratio == 1 and (self.batch == 1 or self.length == total):
            return Rows(slice(start * heads, (start + self.batch * self.length) * heads), self.kept, heads)
        token, there = self._tokens()
        sequence = torch.arange(self.batch, device=token.device)[:, None, None, None] * total
        row = (sequence + start + token) * heads + torch.arange(heads, device=token.device)
        behind = self.batch * total * heads
        return Rows((row if self.whole else row.masked_fill(~there, behind)).flatten(), self.kept, heads)

    def take(self, x: Tensor) -> Tensor:
        """The kept tokens of (batch, seq, heads, ...), (batch * segments, heads, kept, ...); any where one does not
        exist."""
        return self.rows(0, self.length).take(x)

    def missing(self, real: Tensor | None) -> Tensor | None:
        """(batch * segments, heads, kept), True at tokens that do not exist or, (batch, seq), are not real; None if
        there are none."""
        if self.whole and real is None:
            return None
        _, there = self._tokens()
        there = there.expand(self.batch, -1, -1, -1).flatten(0, 1).transpose(1, 2)
        if real is None:
            return ~there
        return ~(there & self.take(real[:, :, None].expand(-1, -1, self.offsets.numel())))

    def _tokens(self) -> tuple[Tensor, Tensor]:
        """(segments, kept, heads), which tokens are kept, and whether they exist."""
        device = self.offsets.device
        within = torch.arange(self.kept, device=device)[:, None] * self.ratio + self.offsets
        token = torch.arange(self.segments, device=device)[:, None, None] * self.segment + within
        return token, (within < self.segment) & (token < self.length)
