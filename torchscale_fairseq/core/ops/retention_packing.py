"""Rows with padding and documents as one long row of sequences, which is the form that kernels take."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .documents import Documents, known_documents

Results = tuple[Tensor, Tensor | None]
PackedForm = Callable[[Tensor, Tensor, Tensor, Tensor | None, "Packing"], Results]
"""From query, key and value, (rows, tokens, heads, dim), the rows of which hold one sequence after the other, states
before the sequences, or None for zeros, and where the sequences lie, to the output and the states after the sequences,
or None if nobody needs them. Real tokens that were taken out of their rows are one row."""
CHUNK = 64
"""Tokens of a chunk of the kernels for packed sequences."""

MOST_PADDING = 0.25
"""Share of padding above which real tokens are copied into a row of their own, because that takes less time than to
compute padding, estimated by the bytes that both move."""


class Chunks(NamedTuple):
    """The chunks of ``CHUNK`` tokens of all sequences; the last one of each may be shorter."""

    first: Tensor
    """(sequences + 1,), the number of each sequence's first chunk, and the number of all chunks."""
    places: Tensor
    """(chunks, 2), the sequence of each chunk, and the chunk's number in it."""


@dataclass(frozen=True)
class Packing:
    """Which tokens make up which sequence. A sequence is a run of tokens of a row and a document: the real ones, or
    padding."""

    real: Tensor | None
    """(tokens,), indices into (batch * seq) of the real ones, if they are taken out of their rows; None for all
    tokens."""
    offsets: Tensor
    """(sequences + 1,), where in the long row each sequence begins, and the end."""
    lengths: Tensor
    """(sequences,), on the host: tokens."""
    row: Tensor
    """(sequences,), the batch row of each."""
    is_first: Tensor
    """(sequences,), True where the sequence goes on from the state of its row."""
    is_last: Tensor
    """(sequences,), True where the state of the row after the batch is that of the sequence."""
    is_kept: Tensor
    """(batch,), True for rows whose state stays as it was, since they have neither real tokens nor documents."""

    @classmethod
    def of(cls, padding_mask: Tensor | None, document_starts: Tensor | None) -> "Packing":
        """From (batch, seq) masks as for ``ops.retention``, of which at least one is given. Waits for the device,
        unless the host knows where documents lie and there is no padding."""
        known = None if document_starts is None else known_documents(document_starts)
        if known is not None and document_starts is not None and padding_mask is None:
            return cls._of_documents(known, document_starts)
        given = padding_mask if padding_mask is not None else document_starts
        assert given is not None
        batch, length = given.shape
        starts = torch.zeros_like(given, dtype=torch.long) if document_starts is None else document_starts.long()
        document = starts.cumsum(1)
        # Even numbers are of real tokens, odd ones of padding, and rows have none in common.
        number = 2 * (document + torch.arange(batch, device=given.device).unsqueeze(1) * (length + 1))
        real, of_token = None, (number if padding_mask is None else number + padding_mask).flatten()
        found, counts = of_token.unique_consecutive(return_counts=True)
        if padding_mask is not None and not _can_stay(found.cpu(), counts.cpu()):
            real = padding_mask.logical_not().flatten().nonzero().squeeze(1)
            found, counts = of_token.index_select(0, real).unique_consecutive(return_counts=True)
        is_real, row, within = found % 2 == 0, found // 2 // (length + 1), found // 2 % (length + 1)
        real_runs = torch.zeros(batch, dtype=torch.long, device=given.device).index_add(0, row, is_real.long())
        is_last = is_real & (within == document[:, -1].index_select(0, row))
        offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        is_kept = (real_runs == 0) & (document[:, -1] == 0)
        return cls(real, offsets, counts.cpu(), row, is_real & (within == 0), is_last, is_kept)

    @classmethod
    def _of_documents(cls, documents: Documents, starts: Tensor) -> "Packing":
        """From documents, and their first tokens as they were given."""
        offsets, (batch, length) = documents.offsets.long(), starts.shape
        row = offsets[:-1] // length
        is_first = ~starts.flatten().index_select(0, offsets[:-1])
        is_last = row != (offsets[1:] // length)
        is_kept = torch.zeros(batch, dtype=torch.bool, device=starts.device)
        return cls(None, offsets, documents.lengths, row, is_first, is_last, is_kept)

    @cached_property
    def chunks(self) -> Chunks:
        """The sequences in chunks, for all layers. The host knows how many there are, so that none waits for it."""
        count = int(_chunk_counts(self.lengths).sum())
        counts = _chunk_counts(self.offsets.diff())
        first = F.pad(counts.cumsum(0), (1, 0))
        sequence = torch.repeat_interleave(counts, output_size=count)
        number = torch.arange(count, device=first.device) - first.index_select(0, sequence)
        return Chunks(first, torch.stack((sequence, number), 1))

    def pack(self, x: Tensor) -> Tensor:
        """(batch, seq, ...) as it is, or (1, tokens, ...) of the real ones."""
        return x if self.real is None else x.flatten(0, 1).index_select(0, self.real).unsqueeze(0)

    def unpack(self, x: Tensor, batch: int, length: int) -> Tensor:
        """The inverse of ``pack``: to (batch, length, ...), with zeros for padding that was left out."""
        if self.real is None:
            return x
        x = x.squeeze(0)
        return x.new_zeros(batch * length, *x.shape[1:]).index_copy(0, self.real, x).unflatten(0, (batch, length))


def packed_retention(
    form: PackedForm,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    state: Tensor | None = None,
) -> Results:
    """Retention with padding or documents by a form that knows sequences of different lengths.

    Args:
        form: which computes the sequences.
        query, key, value, state: as for ``ops.retention``.
        packing: where the sequences lie.

    Returns:
        Output and state, as every form, or None if the form returns none.
    """
    batch, length = query.shape[:2]
    if len(packing.row) == 0:
        wide = torch.promote_types(value.dtype, torch.float32)
        return value.new_zeros(value.shape, dtype=wide), _after(packing, None, query, value, state)
    before = None
    if state is not None:
        before = state.index_select(0, packing.row) * packing.is_first.view(-1, 1, 1, 1)
    q, k, v = map(packing.pack, (query, key, value))
    output, states = form(q, k, v, before, packing)
    after = None if states is None else _after(packing, states, query, value, state)
    return packing.unpack(output, batch, length), after


def _can_stay(found: Tensor, counts: Tensor) -> bool:
    """Whether padding can be computed as sequences of its own, so that no token is copied: there is little of it, and
    it parts no document.

    Args:
        found: (runs,), on the host: numbers of rows' documents, even for a run of real tokens and odd for padding.
        counts: (runs,), on the host: tokens.
    """
    is_padding = found % 2 == 1
    parts_a_document = (found[2:] == found[:-2]) & ~is_padding[2:]
    padding = int(counts[is_padding].sum())
    return padding <= MOST_PADDING * int(counts.sum()) and not bool(parts_a_document.any())


def _chunk_counts(lengths: Tensor) -> Tensor:
    return (lengths + (CHUNK - 1)) // CHUNK


def _after(packing: Packing, states: Tensor | None, query: Tensor, value: Tensor, state: Tensor | None) -> Tensor:
    """The state of each row after the batch, (batch, heads, key_dim, value_dim)."""
    wide = torch.promote_types(value.dtype, torch.float32)
    batch, _, heads, key_dim = query.shape
    after = query.new_zeros(batch, heads, key_dim, value.size(-1), dtype=wide)
    if state is not None:
        after = state.to(wide) * packing.is_kept.view(-1, 1, 1, 1)
    if states is None:
        return after
    return after.index_add(0, packing.row, states.to(wide).masked_fill(~packing.is_last.view(-1, 1, 1, 1), 0.0))
