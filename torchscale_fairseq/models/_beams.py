"""An encoder's output follows beam search."""

from typing import Any

import torch
from torch import Tensor

from torchscale_fairseq.core.layers.cache import rows_of_groups


class SharesRowsOfBeams:
    """Goes before fairseq's class in an encoder's bases."""

    def reorder_encoder_out(self, encoder_out: dict[str, Any], new_order: Tensor) -> dict[str, Any]:
        """Follow beam search. The beams of a sentence share its row as long as they stay together."""
        rows = encoder_out["encoder_out"].size(0)
        beams = encoder_out.get("beams", 0)
        if not beams:
            beams = new_order.numel() // rows
            together = torch.arange(rows, device=new_order.device).repeat_interleave(beams)
            if torch.equal(new_order, together):
                return {**encoder_out, "beams": beams}
            kept: Tensor | None = new_order
        else:
            kept = rows_of_groups(new_order, rows * beams, rows)
        if kept is None:
            return encoder_out
        moved = {name: value.index_select(0, kept) for name, value in encoder_out.items() if isinstance(value, Tensor)}
        states = [state.index_select(0, kept) for state in encoder_out["encoder_states"]]
        return {**encoder_out, **moved, "encoder_states": states, "beams": new_order.numel() // kept.numel()}
