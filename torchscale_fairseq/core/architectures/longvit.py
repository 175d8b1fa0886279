"""LongViT: a vision transformer for images of many thousand pixels, with dilated attention.

"When an Image is Worth 1,024 x 1,024 Words", arXiv:2312.03558, sec. 2. Parameters are named as in the released weights.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import LongViTConfig
from ..layers.vision_embedding import VisionEmbedding
from ..ops.patch_embedding import Bands, embed_patches
from ..parallel.exchange import all_sum
from ..parallel.sequence import SequenceSlice
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
        return self._encode(x + resized_positions(self.pos_embed, rows, columns).to(x.dtype))

    def forward_patches(self, patches: Tensor | Sequence[Bands], sequence_slice: SequenceSlice | None = None) -> Tensor:
        """Images of img_size whose patches are read some at a time; see ``ops.patch_embedding``.

        The embedding of patches is not called, so that hooks of it have no effect.

        Args:
            patches: (batch, patches, channels, patch_size, patch_size) of uint8, or parts of each image in turn.
            sequence_slice: the patches are this process's slice of longer rows.

        Returns:
            (batch, patches, width).
        """
        positions: Tensor = self.pos_embed
        if sequence_slice is not None:
            end = sequence_slice.start + sequence_slice.length
            missing = max(0, sequence_slice.total - positions.size(1))
            positions = F.pad(positions, (0, 0, 0, missing))[:, sequence_slice.start : end]
        projection = self.patch_embed.proj
        assert projection.bias is not None
        x = embed_patches(patches, positions.size(1), projection.weight, projection.bias)
        return self._encode(x + positions.to(x.dtype), sequence_slice)

    def pool(self, features: Tensor) -> Tensor:
        """Features of all patches, (batch, patches, width), to one vector, (batch, width)."""
        return features.mean(1)

    def _encode(self, x: Tensor, sequence_slice: SequenceSlice | None = None) -> Tensor:
        features: Tensor = self.encoder(None, token_embeddings=x, sequence_slice=sequence_slice)["encoder_out"]
        return features


def resized_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Positions (1, patches, width) of a square, interpolated to (1, rows * columns, width)."""
    side = math.isqrt(positions.size(1))
    if (rows, columns) == (side, side):
        return positions
    grid = positions.unflatten(1, (side, side)).permute(0, 3, 1, 2)
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
        return self._score(self.model.pool(self.model(images)))

    def forward_patches(self, patches: Tensor | Sequence[Bands], sequence_slice: SequenceSlice | None = None) -> Tensor:
        """Arguments of ``LongViT.forward_patches`` to (batch, classes), the same in all processes that share images.

        In the backward pass each of them adds its own loss: let them share it out, too.
        """
        x = self.model.forward_patches(patches, sequence_slice)
        if sequence_slice is None:
            return self._score(self.model.pool(x))
        real = sequence_slice.real()
        own = x if real is None else x.masked_fill(~real.to(x.device).unsqueeze(-1), 0.0)
        return self._score(all_sum(own.sum(1), sequence_slice.group) / self.model.config.num_patches)

    def _score(self, pooled: Tensor) -> Tensor:
        scores: Tensor = self.head(self.fc_norm(pooled))
        return scores
