"""Running the core's encoder as the fairseq model does."""

from typing import Any

from torch import Tensor

from torchscale_fairseq.core.ops.positions import absolute_positions


def encode(encoder: Any, tokens: Tensor, padding_mask: Tensor | None, **more: Any) -> dict[str, Any]:
    """Run the core's encoder with fairseq's positions.

    Args:
        encoder: the core's.
        tokens: (batch, seq).
        padding_mask: (batch, seq), True for padding.
        more: arguments of the encoder.
    """
    positions = None
    if padding_mask is not None and encoder.config.torchscale_compatible:
        positions = absolute_positions(padding_mask)
    return encoder(tokens, padding_mask, positions=positions, **more)
