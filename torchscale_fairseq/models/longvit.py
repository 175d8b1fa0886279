"""LongViT: ``longvit_small`` and other sizes, for tasks that read images of any size."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from torchscale_fairseq.core.architectures.longvit import LongViTClassifier, resized_positions
from torchscale_fairseq.core.config import LongViTConfig
from torchscale_fairseq.core.ops.patch_embedding import Bands
from torchscale_fairseq.core.parallel.sequence import SequenceSlice

from ._classifier import Classifier
from ._fits import IMAGES as FITTING_TASKS
from ._hubs import ImageHub
from ._presets import IMAGES
from ._registration import register_presets
from ._released import BranchOptions

FROM_TASK = ("img_size", "patch_size")
POSITIONS = "model.pos_embed"
HEAD = ("fc_norm.", "head.")


class LongViTModel(Classifier, LongViTClassifier):
    """A LongViT with a head that scores classes; each preset is a subclass. Parameters have the released names.

    Args:
        config: of the core.
        num_classes: scores.
    """

    config_class = LongViTConfig
    hub = ImageHub
    fits = FITTING_TASKS
    kind = "a LongViT"
    advice = "take the --arch and --patch-size that it was made for"
    wrappers = ("module.", "backbone.", "model.")

    def __init__(self, config: LongViTConfig, num_classes: int):
        LongViTClassifier.__init__(self, config, num_classes)

    def forward(self, patches: Tensor | Sequence[Bands], sequence_slice: SequenceSlice | None = None) -> Tensor:
        """Scores (batch, classes); arguments as for ``LongViT.forward_patches``."""
        return self.forward_patches(patches, sequence_slice)

    def extract_features(self, patches: Tensor | Sequence[Bands]) -> Tensor:
        """Features (batch, patches, width) instead of scores."""
        return self.model.forward_patches(patches)

    def own_names(self, released: dict[str, Tensor]) -> dict[str, Tensor]:
        """The head and its norm stand next to the body."""
        return {name if name.startswith(HEAD) else f"model.{name}": value for name, value in released.items()}

    def adapt(self, state_dict: dict[str, Any]) -> None:
        """Let a state dict for other classes or another size be loaded: the head stays as initialised, positions are
        interpolated."""
        super().adapt(state_dict)
        if POSITIONS in state_dict:
            side = self.model.config.img_size // self.model.config.patch_size
            state_dict[POSITIONS] = resized_positions(state_dict[POSITIONS], side, side)


register_presets(LongViTModel, IMAGES, LongViTConfig, BranchOptions, FROM_TASK)
