"""A ViT that predicts hidden patches, behind fairseq's interface."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq.models import BaseFairseqModel
from torch import Tensor

from torchscale_fairseq.core.architectures.masked_image import MaskedImageModel
from torchscale_fairseq.core.ops.patch_embedding import Bands

from ._vit_weights import MASK_TOKEN, load_vit, resize_positions

logger = logging.getLogger(__name__)


class MaskedImageViT(MaskedImageModel, BaseFairseqModel):
    """Predicts hidden patches for ``--task masked_image_modeling``; arguments as for ``MaskedImageModel``."""

    def forward(self, patches: Tensor | Sequence[Bands], masked_patches: Tensor) -> Tensor:
        """Predictions of hidden patches, as of ``MaskedImageModel.forward_patches``."""
        return self.forward_patches(patches, masked_patches)

    def extract_features(self, patches: Tensor | Sequence[Bands]) -> Tensor:
        """Features (batch, tokens, width) of whole images."""
        return self.model.forward_patches(patches)

    def load_weights(self, path: str | Path, branch: str = "teacher") -> None:
        """Begin from a file of released weights, or from a checkpoint; its head is taken if it predicts patches.

        Args:
            path: of the file.
            branch: teacher or student; which of them is taken from a file that has both.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is not of this architecture.
        """
        advice = "take the --arch, --patch-size and --pooling that it was made for"
        load_vit(self, path, branch, kind="a ViT", advice=advice)

    def adapt(self, given: dict[str, Any]) -> None:
        """Let weights without a mask token, or for another size, be loaded."""
        if MASK_TOKEN not in given:
            logger.warning("left as initialised, since the file is of whole images: %s", MASK_TOKEN)
            given[MASK_TOKEN] = self.model.patch_embed.mask_token
        resize_positions(given, self.model.config)

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Let a checkpoint for another img_size be loaded."""
        super().upgrade_state_dict_named(state_dict, name)
        resize_positions(state_dict, self.model.config)

    def max_positions(self) -> None:
        """The task knows how large images are."""
