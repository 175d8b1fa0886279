"""Tiny networks for self-distillation, and numbers drawn for them."""

from typing import Any

import torch
from torch import Tensor, nn

from torchscale_fairseq import LongViTConfig, ViTConfig
from torchscale_fairseq.core.architectures.longvit import LongViT
from torchscale_fairseq.core.architectures.self_distillation import ProjectedImages
from torchscale_fairseq.core.architectures.vit import ViT
from torchscale_fairseq.core.layers.projection_head import ProjectionHead

SIZES: dict[str, Any] = {
    "encoder_layers": 1,
    "encoder_embed_dim": 8,
    "encoder_ffn_embed_dim": 16,
    "encoder_attention_heads": 2,
}
PIXELS: dict[str, Any] = {"img_size": 16, "patch_size": 4}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(kind: str) -> ProjectedImages:
    body: nn.Module = ViT(ViTConfig(**SIZES, **PIXELS)) if kind == "vit" else _longvit()
    return ProjectedImages(body, nn.LayerNorm(8), ProjectionHead(8, 12, 6, 10)).double()


def _longvit() -> LongViT:
    return LongViT(LongViTConfig(**SIZES, **PIXELS, segment_length=[4, 16], dilated_ratio=[1, 2]))
