"""Embeddings of words, positions and patches."""

from typing import Any

import torch
from torch import Tensor, nn

from ...core.layers.embedding import TextEmbedding as TextEmbedding
from ...core.layers.vision_embedding import VisionEmbedding as _Patches
from ...core.ops.positions import FIRST_POSITION


class PositionalEmbedding(nn.Embedding):
    """A learned vector per position; the first token has row 2, as in fairseq."""

    def forward(self, x: Tensor, positions: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Vectors of the positions, or of those of a sequence like x, (batch, seq, ...)."""
        if positions is None:
            positions = torch.arange(FIRST_POSITION, x.size(1) + FIRST_POSITION, device=x.device)[None]
        return super().forward(positions)


class VisionEmbedding(_Patches):
    """Patches of an image, with a learned vector instead of masked ones and an optional class token in front.

    Args:
        img_size, patch_size: sides in pixels.
        in_chans: channels.
        embed_dim: width.
        contain_mask_token, prepend_cls_token: whether there are such tokens.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        contain_mask_token: bool = False,
        prepend_cls_token: bool = False,
    ):
        super().__init__(patch_size, in_chans, embed_dim, mask_token=contain_mask_token, class_token=prepend_cls_token)
        side = img_size // patch_size
        self.img_size, self.patch_shape, self.num_patches = (img_size, img_size), (side, side), side * side
        self.patch_size = patch_size

    def num_position_embeddings(self) -> int:
        """Patches, and the class token."""
        return self.num_patches + (self.cls_token is not None)

    def forward(self, x: Tensor, masked_position: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Images (batch, channels, height, width) to (batch, patches, embed_dim).

        Raises:
            AssertionError: images have another size.
        """
        assert x.shape[-2:] == self.img_size, f"images are {tuple(x.shape[-2:])}, but img_size is {self.img_size}."
        return super().forward(x, masked_position)


class VisionLanguageEmbedding(nn.Module):
    """Embeds words, images or both.

    Args:
        text_embed, vision_embed: modules for the two.
    """

    def __init__(self, text_embed: nn.Module, vision_embed: nn.Module):
        super().__init__()
        self.text_embed = text_embed
        self.vision_embed = vision_embed

    def forward(self, textual_tokens: Tensor | None, visual_tokens: Tensor | None, **kwargs: Any) -> Tensor:
        """Image tokens before words, (batch, seq, width)."""
        parts = [] if visual_tokens is None else [self.vision_embed(visual_tokens)]
        parts += [] if textual_tokens is None else [self.text_embed(textual_tokens)]
        return torch.cat(parts, 1)
