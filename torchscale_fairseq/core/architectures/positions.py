"""Positions of the tokens of one forward pass."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..layers.multiway import Multiway
from ..ops.documents import Documents, documents_of
from ..ops.masks import as_mask, is_traced, marked
from ..ops.positions import FIRST_POSITION, absolute_positions, has_padding_inside, relative_positions
from ..ops.xpos import XPosTables, xpos_tables
from ..parallel.sequence import SequenceSlice
from .spec import LayerSpec


def position_rows(positions: Tensor | None, padding_mask: Tensor | None, *, start: int, x: Tensor) -> Tensor:
    """Rows of the position table for the tokens of x, (batch, seq, width): given, counted from the padding mask
    of exactly these tokens and those before, or consecutive from token ``start`` on."""
    if positions is not None:
        return positions
    if padding_mask is not None:
        return absolute_positions(padding_mask)[:, -x.size(1) :]
    first = FIRST_POSITION + start
    return torch.arange(first, first + x.size(1), device=x.device)[None]


def positions_in_scores(padding_mask: Tensor | None, length: int, device: torch.device) -> Tensor:
    """(batch or 1, length), positions whose differences count in scores; padding between tokens is skipped."""
    if padding_mask is not None and has_padding_inside(padding_mask):
        return relative_positions(padding_mask)
    return torch.arange(length, device=device)[None]


class TokenPositions(NamedTuple):
    """Where the tokens of one forward pass stand."""

    padding_mask: Tensor | None
    """(batch, earlier and new tokens), True for padding; None for none."""
    rows: Tensor | None
    """(batch or 1, seq), rows of the position table; None: counted from the mask."""
    in_scores: Tensor
    """(batch or 1, earlier and new tokens), positions whose differences count in scores."""
    total: int
    """Earlier and new tokens, in all processes that hold slices of them; in packed rows, those of the longest
    document."""
    documents: Documents | None = None
    """The documents of packed rows, in which positions begin anew."""
    are_given: bool = False
    """Whether rows come from a caller, and may lie anywhere in the table."""

    @classmethod
    def of_slice(cls, sequence_slice: SequenceSlice, device: torch.device) -> "TokenPositions":
        """The positions of a slice of longer rows."""
        return cls(
            marked(sequence_slice.padding_mask()),
            sequence_slice.position_rows(device),
            sequence_slice.positions(device),
            sequence_slice.total,
        )

    @classmethod
    def of_documents(cls, documents: Documents, padding_mask: Tensor | None) -> "TokenPositions":
        """The positions of packed rows, (batch, seq)."""
        rows = documents.position_rows(padding_mask)
        return cls(padding_mask, rows, documents.positions, documents.longest, documents)

    def bias(self, relative: nn.Module | None, new: int) -> Tensor | None:
        """Bias of the scores of the last ``new`` tokens by relative positions; with documents, of a document of as many
        tokens as the longest, or on a GPU of a row."""
        if relative is None:
            return None
        if self.documents is None:
            return cast(Tensor, relative(self.in_scores[:, -new:], self.in_scores))
        length = new if self.in_scores.is_cuda else self.total
        positions = torch.arange(length, device=self.in_scores.device)[None]
        return cast(Tensor, relative(positions, positions))


def packed_positions(document_starts: Tensor, padding_mask: Tensor | None) -> TokenPositions:
    """The positions of packed rows.

    Args:
        document_starts: (batch, seq), True or 1 for the first token of each document.
        padding_mask: (batch, seq), True for padding.

    Raises:
        InputError: document_starts holds floats.
    """
    padding_mask, starts = marked(padding_mask), as_mask(document_starts, "document_starts")
    assert starts is not None
    return TokenPositions.of_documents(documents_of(starts, padding_mask), padding_mask)


def check_length(spec: LayerSpec, embed_positions: nn.Module, rows: Tensor, total: int) -> None:
    """Raise InputError if rows run past the table of absolute positions.

    Two tables are checked by their maker. A traced model is not checked; the table itself refuses rows that it lacks.

    Args:
        spec: the side's.
        embed_positions: the table.
        rows: (batch or 1, seq).
        total: the tokens of a sequence, padding included. Rows, which may lie on a device, are only looked at if
            this number does not fit.
    """
    if isinstance(embed_positions, Multiway) or is_traced():
        return
    assert spec.positions is not None
    limit = getattr(embed_positions, "max_positions", spec.positions.longest)
    if total <= limit:
        return
    length = int(rows.max()) - FIRST_POSITION + 1
    if length > limit:
        name = spec.positions.option
        raise InputError(
            f"a sequence of {length} tokens is longer than {name} ({limit}); shorten the input, or build and "
            f"train a model with a higher {name} or with positions without a limit (xpos_rel_pos, or rel_pos_buckets "
            "with max_rel_pos)."
        )


def xpos_for(
    spec: LayerSpec, positions: Tensor, *, causal: bool, centre: int | Tensor, span: int, dtype: torch.dtype
) -> XPosTables | None:
    """xPos tables for one forward pass, if the side has xPos.

    Args:
        spec: the side's.
        positions: (batch or 1, seq), of queries and new keys.
        causal: scores decay; in bidirectional attention they do so in TorchScale's code only.
        centre: position at which nothing is scaled.
        span: tokens between the first of them and the last.
        dtype: of the model.
    """
    if spec.positions is None or spec.attention is None or not spec.positions.xpos:
        return None
    return xpos_tables(
        positions,
        spec.width // spec.attention.heads,
        decay=causal or spec.torchscale_compatible,
        scale_base=spec.positions.xpos_scale_base,
        centre=centre,
        span=span,
        dtype=dtype,
    )
