"""A small slide encoder, and slides for it."""

from typing import Any

import torch

from torchscale_fairseq import SlideEncoder, SlideEncoderConfig

SMALL: dict[str, Any] = {
    "feature_dim": 6,
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 4,
    "segment_length": [4, 16],
    "dilated_ratio": [1, 2],
    "grid_size": 20,
}


def small(**options: Any) -> SlideEncoder:
    torch.manual_seed(0)
    return SlideEncoder(SlideEncoderConfig(**{**SMALL, **options})).eval()


def slides(batch: int, tiles: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(0, 20, (batch, tiles, 2), generator=generator)
    return torch.randn(batch, tiles, 6, generator=generator), 256 * cells + 17
