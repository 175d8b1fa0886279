"""Inputs of retention that the layers of a forward pass share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.positions import has_padding_inside
from ..ops.retention_forms import packing_for
from ..ops.retention_packing import Packing
from ..ops.retention_tables import RetentionTables, retention_tables


@dataclass(frozen=True)
class RetentionInputs:
    """Inputs of retention besides the tokens' vectors; made once per forward pass, for all layers."""

    tables: RetentionTables
    """Rotate and scale queries and keys."""
    log_decay: Tensor
    """(heads,), natural log of each head's decay."""
    padding_mask: Tensor | None = None
    """(batch, seq), True for padding whose keys the tables leave as they are."""
    document_starts: Tensor | None = None
    """(batch, seq), True where a new document begins."""
    packing: Packing | None = None
    """Where the sequences of both masks lie, if kernels for packed sequences are to compute them."""

    @classmethod
    def of(
        cls,
        x: Tensor,
        counts: Tensor,
        log_decay: Tensor,
        key_dim: int,
        *,
        padding_mask: Tensor | None = None,
        document_starts: Tensor | None = None,
        has_state: bool,
        inclusive: bool,
        backend: str = "auto",
    ) -> "RetentionInputs":
        """Inputs of all layers. May wait for the device, to learn where padding lies.

        Padding at the ends of rows only needs keys of zero, to which the tables rotate them: the state before the first
        token is zero and does not decay, and the state after the last token is not used.

        Args:
            x: (batch, seq, width), input of the layers.
            counts: (batch or 1, seq), as from ``token_counts`` of the same masks.
            log_decay, key_dim, inclusive: as for ``retention_tables``.
            padding_mask, document_starts: (batch, seq), as for every form of retention.
            has_state: layers take in a state, or return one.
            backend: as for ``retention``.
        """
        hidden = None
        if not has_state and document_starts is None and padding_mask is not None:
            hidden = None if has_padding_inside(padding_mask) else padding_mask
        if hidden is not None:
            padding_mask = None
        largest = x.size(1) if x.is_cuda and not has_state and counts.size(0) > 1 else None
        tables = retention_tables(
            counts, log_decay, key_dim, dtype=x.dtype, inclusive=inclusive, largest=largest, hidden=hidden
        )
        wide = torch.promote_types(x.dtype, torch.float32)  # as every layer computes with them
        masks = {"padding_mask": padding_mask, "document_starts": document_starts}
        packing = packing_for(x, backend, need_state=has_state, **masks)
        return cls(tables, log_decay.to(wide), **masks, packing=packing)
