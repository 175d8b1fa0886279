"""Rows that hold several documents, one after the other, none of which sees another."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InputError
from .masks import is_traced
from .positions import FIRST_POSITION, PADDING_POSITION


@dataclass(frozen=True)
class Group:
    """Documents of similar length, as rows of their own."""

    documents: Tensor
    """(documents,), their numbers, on the host."""
    tokens: Tensor
    """(documents, longest), indices into (batch * seq); beyond a document's end, that of its last token."""
    beyond: Tensor | None
    """(documents, longest), True beyond a document's end; None if all are as long as the longest."""


@dataclass(frozen=True)
class Documents:
    """Where documents lie in a batch of rows. Every token belongs to one; padding makes up documents of its own."""

    starts: Tensor
    """(batch, seq), True for the first token of each document."""
    offsets: Tensor
    """(documents + 1,), int32: first tokens in (batch * seq), and the end."""
    lengths: Tensor
    """(documents,), long, on the host: tokens."""

    @classmethod
    def of(cls, starts: Tensor, padding_mask: Tensor | None = None) -> "Documents":
        """From the first tokens. Waits for the device that holds them.

        Args:
            starts: (batch, seq), True for the first token of each document; rows begin with one anyway.
            padding_mask: (batch, seq), True for padding, which ends a document.

        Raises:
            InputError: the model is traced, so that tensors have no values to be read.
        """
        if is_traced():
            raise InputError("document_starts cannot be exported: the number of documents is read from it.")
        starts = starts.clone()
        starts[:, :1] = True
        if padding_mask is not None:
            starts[:, 1:] |= padding_mask[:, 1:] != padding_mask[:, :-1]
        first = starts.flatten().nonzero().squeeze(1)
        offsets = torch.cat((first, first.new_full((1,), starts.numel())))
        return cls(starts, offsets.int(), offsets.diff().cpu())

    def to(self, device: torch.device) -> "Documents":
        """A copy for tokens on a device. It does not wait for the device."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("starts", "offsets")}
        return replace(self, **moved)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return int(self.lengths.max())

    @cached_property
    def positions(self) -> Tensor:
        """(batch, seq), long: a token's place in its document, counted from 0."""
        index = torch.arange(self.starts.size(1), device=self.starts.device)
        return index - torch.where(self.starts, index, 0).cummax(1).values

    def position_rows(self, padding_mask: Tensor | None) -> Tensor:
        """(batch, seq), rows of the position table (``ops.positions``)."""
        rows = self.positions + FIRST_POSITION
        return rows if padding_mask is None else rows.masked_fill(padding_mask, PADDING_POSITION)

    @cached_property
    def groups(self) -> list[Group]:
        """All documents, in groups within which no document is twice as long as another."""
        size = self.lengths.log2().floor()
        return [self.group((size == power).nonzero().squeeze(1)) for power in size.unique()]

    def group(self, documents: Tensor) -> Group:
        """Some documents as rows.

        Args:
            documents: (documents,), their numbers, on the host.
        """
        first, lengths = (self.lengths.cumsum(0) - self.lengths)[documents, None], self.lengths[documents, None]
        index = torch.arange(int(lengths.max()))
        tokens, beyond = first + index.minimum(lengths - 1), index >= lengths
        device = self.starts.device
        return Group(documents, tokens.to(device), beyond.to(device) if bool(beyond.any()) else None)

    @cached_property
    def ungrouped(self) -> Tensor:
        """(batch * seq,), where each token stands among the tokens of all groups, without those beyond ends."""
        real = [g.tokens.flatten() if g.beyond is None else g.tokens[~g.beyond] for g in self.groups]
        return torch.cat(real).argsort()


def starts_after_empty_lines(tokens: Tensor, end_of_line: int, padding: int) -> Tensor:
    """First tokens of documents in rows of lines: those that an empty line separates, which has its end alone.

    Args:
        tokens: (batch, seq), as a causal model reads them: the end of the last line comes before each line.
        end_of_line, padding: the tokens.

    Returns:
        (batch, seq), True where the end of an empty line is read, from which a document's first token is predicted,
        and for the first token of padding and after it.
    """
    ends, padded = tokens == end_of_line, tokens == padding
    starts = torch.zeros_like(ends)
    starts[:, 1:] = (ends[:, 1:] & ends[:, :-1]) | (padded[:, 1:] != padded[:, :-1])
    return starts


def documents_of(starts: Tensor, padding_mask: Tensor | None = None) -> Documents:
    """``Documents.of``, or what ``note_documents`` knows, without waiting for the device."""
    known = known_documents(starts)
    return Documents.of(starts, padding_mask) if known is None else known


def known_documents(starts: Tensor) -> Documents | None:
    """The documents that ``note_documents`` remembered of a tensor of first tokens; None for none."""
    return getattr(starts, "documents", None)


def note_documents(starts: Tensor, documents: Documents) -> Tensor:
    """Remember where the documents lie that a tensor of first tokens tells. Returns the tensor."""
    starts.documents = documents  # type: ignore[attr-defined]
    return starts
