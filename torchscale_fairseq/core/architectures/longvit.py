"""LongViT: a vision transformer for images of many thousand pixels, with dilated attention.

"When an Image is Worth 1,024 x 1,024 Words", arXiv:2312.03558, sec. 2. Parameters are named as in the released weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import LongViTConfig
from ..layers.vision_embedding import VisionEmbedding
from .longnet import LongNetEncoder

POSITION_STD = 0.02


class LongViT(nn.Module):
    """Patches with learned positions, and a LongNet encoder over them, row by row.

    Args:
        config: the options.
    """

    def __init__(self, config: LongViTConfig):
        super().__init__()
        self.config = config
        width = config.encoder_embed_dim
        self.patch_embed = VisionEmbedding(
            config.patch_size, config.in_chans, width, mask_token=False, class_token=False
        )
        self.pos_embed = nn.Parameter(torch.empty(1, config.num_patches, width))
        nn.init.trunc_normal_(self.pos_embed, std=POSITION_STD, a=-POSITION_STD, b=POSITION_STD)
        self.encoder = LongNetEncoder(config)

    def forward(self, images: Tensor) -> Tensor:
        """Images of any size to a vector for each patch.

        Positions are interpolated for images of another size than img_size.

        Args:
            images: (batch, channels, height, width); patches must divide height and width.

        Returns:
            (batch, patches, width).

        Raises:
            ValueError: patches do not divide the image.
        """
        x = self.patch_embed(images)
        rows, columns = (side // self.config.patch_size for side in images.shape[-2:])
        x = x + self._positions(rows, columns).to(x.dtype)
        features: Tensor = self.encoder(None, token_embeddings=x)["encoder_out"]
        return features

    def _positions(self, rows: int, columns: int) -> Tensor:
        side = math.isqrt(self.pos_embed.size(1))
        if (rows, columns) == (side, side):
            return self.pos_embed
        grid = self.pos_embed.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return grid.flatten(2).transpose(1, 2)


class LongViTClassifier(nn.Module):
    """The mean of a LongViT's patches, normalised, to a score for each class.

    Args:
        config: of the LongViT.
        num_classes: scores.
    """

    def __init__(self, config: LongViTConfig, num_classes: int):
        super().__init__()
        self.model = LongViT(config)
        self.fc_norm = nn.LayerNorm(config.encoder_embed_dim)
        self.head = nn.Linear(config.encoder_embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=POSITION_STD, a=-POSITION_STD, b=POSITION_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, classes)."""
        scores: Tensor = self.head(self.fc_norm(self.model(images).mean(1)))
        return scores
