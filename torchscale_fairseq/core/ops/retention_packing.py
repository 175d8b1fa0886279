"""Rows with padding and documents as one long row of sequences, which is the form that kernels take."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .documents import Documents, known_documents

Results = tuple[Tensor, Tensor | None]
PackedForm = Callable[[Tensor, Tensor, Tensor, Tensor | None, "Packing"], Results]
"""From query, key and value of the real tokens, (1, tokens, heads, dim), states before the sequences, or None for
zeros, and where the sequences lie, to the output and the states after the sequences, or None if nobody needs them."""
CHUNK = 64
"""Tokens of a chunk of the kernels for packed sequences."""


class Chunks(NamedTuple):
    """The chunks of ``CHUNK`` tokens of all sequences; the last one of each may be shorter."""

    first: Tensor
    """(sequences + 1,), the number of each sequence's first chunk, and the number of all chunks."""
    places: Tensor
    """(chunks, 2), the sequence of each chunk, and the chunk's number in it."""


class _Masks(NamedTuple):
    """Masks and the numbers of the changes made to them in place."""

    masks: tuple[Tensor | None, Tensor | None]
    versions: tuple[int, ...]

    @classmethod
    def of(cls, *masks: Tensor | None) -> "_Masks | None":
        """None where torch does not count changes."""
        given = [mask for mask in masks if mask is not None]
        if any(mask.is_inference() for mask in given):
            return None
        return cls((masks[0], masks[1]), tuple(mask._version for mask in given))

    def are_those_of(self, other: "_Masks") -> bool:
        """Both have the same tensors, unchanged."""
        same = all(one is another for one, another in zip(self.masks, other.masks, strict=True))
        return same and self.versions == other.versions


@dataclass(frozen=True)
class Packing:
    """Which tokens make up which sequence. A sequence is a run of real tokens of a row and a document."""

    real: Tensor | None
    """(tokens,), indices into (batch * seq) of the real ones; None for all."""
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
    _latest: ClassVar["tuple[_Masks, Packing] | None"] = None

    @classmethod
    def shared(cls, padding_mask: Tensor | None, document_starts: Tensor | None) -> "Packing":
        """``of``, made once for all layers of a forward pass, which pass the same masks on."""
        masks = _Masks.of(padding_mask, document_starts)
        if masks is None:
            return cls.of(padding_mask, document_starts)
        if cls._latest is None or not masks.are_those_of(cls._latest[0]):
            cls._latest = masks, cls.of(padding_mask, document_starts)
        return cls._latest[1]

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
        real = None if padding_mask is None else padding_mask.logical_not().flatten().nonzero().squeeze(1)
        number = document + torch.arange(batch, device=given.device).unsqueeze(1) * (length + 1)  # unique over rows
        of_token = number.flatten() if real is None else number.flatten().index_select(0, real)
        found, counts = of_token.unique_consecutive(return_counts=True)
        row, within = found // (length + 1), found % (length + 1)
        in_row = torch.zeros(batch, dtype=torch.bool, device=given.device).index_fill(0, row, True)
        is_last = within == document[:, -1].index_select(0, row)
        offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        return cls(real, offsets, counts.cpu(), row, within == 0, is_last, ~in_row & (document[:, -1] == 0))

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
        """(batch, seq, ...) to (1, tokens, ...)."""
        x = x.flatten(0, 1)
        return (x if self.real is None else x.index_select(0, self.real)).unsqueeze(0)

    def unpack(self, x: Tensor, batch: int, length: int) -> Tensor:
        """(1, tokens, ...) to (batch, length, ...), with zeros for padding."""
        x = x.squeeze(0)
        if self.real is not None:
            x = x.new_zeros(batch * length, *x.shape[1:]).index_copy(0, self.real, x)
        return x.unflatten(0, (batch, length))


def packed_retention(
    form: PackedForm,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    padding_mask: Tensor | None = None,
    document_starts: Tensor | None = None,
    state: Tensor | None = None,
) -> Results:
    """Retention with padding or documents by a form that knows sequences of different lengths.

    Args:
        form: which computes the sequences.
        query, key, value, padding_mask, document_starts, state: as for ``ops.retention``; one of the masks is given.

    Returns:
        Output, zero for padding, and state, as every form, or None if the form returns none.
    """
    packing, (batch, length) = Packing.shared(padding_mask, document_starts), query.shape[:2]
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
    return after.index_add(0, packing.row, states.to(wide) * packing.is_last.view(-1, 1, 1, 1))
