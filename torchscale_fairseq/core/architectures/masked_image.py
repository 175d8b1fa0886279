"""Masked image modelling: a ViT that predicts hidden patches from the others.

BEiT, arXiv:2106.08254, sec. 2.3, predicts the ids that a tokenizer gives the patches; SimMIM, arXiv:2111.09886, sec.
3.4, predicts their pixels.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ..config import ViTConfig
from ..ops.patch_embedding import Bands
from .vit import STD, ViT


class MaskedImageModel(nn.Module):
    """A ViT with a mask token, and a head on the features of hidden patches.

    Args:
        config: of the ViT.
        vocab_size: ids of the tokenizer, each of which gets a score; 0 to predict a patch's pixels.
    """

    def __init__(self, config: ViTConfig, vocab_size: int = 0):
        super().__init__()
        self.model = ViT(config, mask_token=True)
        outputs = vocab_size or config.in_chans * config.patch_size**2
        self.patch_norm = nn.LayerNorm(config.encoder_embed_dim, config.layernorm_eps)
        self.patch_head = nn.Linear(config.encoder_embed_dim, outputs)
        nn.init.trunc_normal_(self.patch_head.weight, std=STD, a=-2 * STD, b=2 * STD)
        nn.init.zeros_(self.patch_head.bias)

    def forward(self, images: Tensor, masked_patches: Tensor) -> Tensor:
        """Predict hidden patches.

        Args:
            images: (batch, channels, height, width), as for ``ViT.forward``.
            masked_patches: (batch, patches), True for patches that are hidden.

        Returns:
            (masked, vocab_size or channels * patch_size ** 2), image by image and row by row.
        """
        return self.predict(self.model(images, masked_patches), masked_patches)

    def forward_patches(self, patches: Tensor | Sequence[Bands], masked_patches: Tensor) -> Tensor:
        """Predict hidden patches of images given as patches, as for ``ViT.forward_patches``."""
        return self.predict(self.model.forward_patches(patches, masked_patches), masked_patches)

    def predict(self, features: Tensor, masked_patches: Tensor) -> Tensor:
        """Features of all tokens, (batch, tokens, width), to the predictions of hidden patches."""
        hidden = features[:, features.size(1) - masked_patches.size(1) :][masked_patches.bool()]
        predicted: Tensor = self.patch_head(self.patch_norm(hidden))
        return predicted
