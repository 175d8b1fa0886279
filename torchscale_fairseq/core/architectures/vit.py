"""ViT: a vision transformer for images of ordinary sizes, with dense attention.

"An Image is Worth 16x16 Words", arXiv:2010.11929, sec. 3.1, with the residual scheme that the config names.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ViTConfig
from ..layers.hooked import does_only, is_hooked
from ..layers.vision_embedding import VisionEmbedding
from ..ops.patch_embedding import Bands, embed_patches, whole_images
from .encoder import Encoder
from .longvit import resized_positions

STD = 0.02


class ViT(nn.Module):
    """Patches, row by row, with learned positions, an encoder over them, and the vector that stands for the image.

    Args:
        config: the options.
        mask_token: whether patches can be masked.
    """

    def __init__(self, config: ViTConfig, *, mask_token: bool = False):
        super().__init__()
        self.config = config
        width = config.encoder_embed_dim
        self.patch_embed = VisionEmbedding(
            config.patch_size, config.in_chans, width, mask_token=mask_token, class_token=config.has_class_token
        )
        self.pos_embed = nn.Parameter(torch.empty(1, config.has_class_token + config.num_patches, width))
        nn.init.trunc_normal_(self.pos_embed, std=STD, a=-2 * STD, b=2 * STD)
        for token in (self.patch_embed.cls_token, self.patch_embed.mask_token):
            if token is not None:
                nn.init.normal_(token, std=STD)
        self.encoder = Encoder(config)

    def forward(self, images: Tensor, masked_patches: Tensor | None = None) -> Tensor:
        """Features of the class token, if there is one, and of each patch.

        Positions are interpolated for images of another size than img_size.

        Args:
            images: (batch, channels, height, width), seen as -1 to 1; patches must divide height and width.
            masked_patches: (batch, patches), True or 1 for patches that are hidden.

        Returns:
            (batch, tokens, width).

        Raises:
            ValueError: patches do not divide the image, or cannot be masked.
        """
        rows, columns = (side // self.config.patch_size for side in images.shape[-2:])
        return self._encode(self.patch_embed(images, masked_patches), rows, columns)

    def forward_patches(self, patches: Tensor | Sequence[Bands], masked_patches: Tensor | None = None) -> Tensor:
        """Images of img_size, given as patches of pixels from 0 to 255, to what ``forward`` returns.

        Args:
            patches: (batch, patches, channels, patch_size, patch_size) of uint8, or parts of each image in turn (see
                ``ops.patch_embedding``).
            masked_patches: as for ``forward``.
        """
        projection = self.patch_embed.proj
        if is_hooked(self) or is_hooked(self.patch_embed) or not does_only(projection, nn.Conv2d):
            images = whole_images(patches, projection.weight.device).to(projection.weight.dtype) / 127.5 - 1.0
            features: Tensor = self(images, masked_patches)
            return features
        assert projection.bias is not None
        weight = projection.weight
        if isinstance(patches, Tensor):
            pixels = patches.to(weight.dtype).flatten(2) / 127.5 - 1.0
            x = F.linear(pixels, weight.flatten(1), projection.bias)
        else:
            x = embed_patches(patches, self.config.num_patches, weight, projection.bias)
        side = self.config.img_size // self.config.patch_size
        return self._encode(self.patch_embed.tokens(x, masked_patches), side, side)

    def pool(self, features: Tensor) -> Tensor:
        """Features of all tokens, (batch, tokens, width), to one vector, (batch, width)."""
        return features[:, 0] if self.config.has_class_token else features.mean(1)

    def _encode(self, x: Tensor, rows: int, columns: int) -> Tensor:
        positions = resized_patch_positions(self.pos_embed, rows, columns, self.config.has_class_token)
        features: Tensor = self.encoder(None, token_embeddings=x + positions.to(x.dtype))["encoder_out"]
        return features


def resized_patch_positions(positions: Tensor, rows: int, columns: int, class_token: bool) -> Tensor:
    """Positions (1, tokens, width) of a square of patches, interpolated to another grid; a class token's stays."""
    first, patches = positions[:, : int(class_token)], positions[:, int(class_token) :]
    return torch.cat((first, resized_positions(patches, rows, columns)), 1)


class ViTClassifier(nn.Module):
    """The vector of a ViT's image, normalised, to a score for each class.

    Args:
        config: of the ViT.
        num_classes: scores.
    """

    def __init__(self, config: ViTConfig, num_classes: int):
        super().__init__()
        self.model = ViT(config)
        self.fc_norm = nn.LayerNorm(config.encoder_embed_dim, config.layernorm_eps)
        self.head = nn.Linear(config.encoder_embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=STD, a=-2 * STD, b=2 * STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, classes)."""
        return self.score(self.model(images))

    def forward_patches(self, patches: Tensor | Sequence[Bands]) -> Tensor:
        """Patches, as for ``ViT.forward_patches``, to (batch, classes)."""
        return self.score(self.model.forward_patches(patches))

    def score(self, features: Tensor) -> Tensor:
        """Features of all tokens, (batch, tokens, width), to (batch, classes)."""
        scores: Tensor = self.head(self.fc_norm(self.model.pool(features)))
        return scores
