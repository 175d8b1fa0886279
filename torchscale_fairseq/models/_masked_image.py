"""A ViT that predicts hidden patches, behind fairseq's interface."""

import logging
from collections.abc import Sequence
from typing import Any

from fairseq.models import BaseFairseqModel
from torch import Tensor

from torchscale_fairseq.core.architectures.masked_image import MaskedImageModel
from torchscale_fairseq.core.ops.patch_embedding import Bands

from ._vit_weights import MASK_TOKEN, BeginsFromViT, resize_positions

logger = logging.getLogger(__name__)

HEAD = ("patch_head.weight", "patch_head.bias")


class MaskedImageViT(BeginsFromViT, MaskedImageModel, BaseFairseqModel):
    """Predicts hidden patches for ``--task masked_image_modeling``; arguments as for ``MaskedImageModel``."""

    def forward(self, patches: Tensor | Sequence[Bands], masked_patches: Tensor) -> Tensor:
        """Predictions of hidden patches, as of ``MaskedImageModel.forward_patches``."""
        return self.forward_patches(patches, masked_patches)

    def extract_features(self, patches: Tensor | Sequence[Bands]) -> Tensor:
        """Features (batch, tokens, width) of whole images."""
        return self.model.forward_patches(patches)

    def adapt(self, state_dict: dict[str, Any]) -> None:
        """Let weights without a mask token, with another head or for another size be loaded: token and head stay as
        initialised, positions are interpolated."""
        own = self.state_dict()
        for name in (MASK_TOKEN, *HEAD):
            if name not in state_dict or state_dict[name].shape != own[name].shape:
                logger.warning("left as initialised, since the file has none of its shape: %s", name)
                state_dict[name] = own[name]
        resize_positions(state_dict, self.model.config)

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Let a checkpoint for another img_size be loaded."""
        super().upgrade_state_dict_named(state_dict, name)
        resize_positions(state_dict, self.model.config)

    def max_positions(self) -> None:
        """The task knows how large images are."""
