"""ViT and BEiT: ``vit_magneto_base``, ``beit_base`` and others, for images of ordinary sizes."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from torchscale_fairseq.core.architectures.vit import ViTClassifier
from torchscale_fairseq.core.config import ViTConfig
from torchscale_fairseq.core.ops.patch_embedding import Bands
from torchscale_fairseq.hooks.contracts import PredictsPatches

from ._classifier import Classifier
from ._fits import VISION as FITTING_TASKS
from ._hubs import ImageHub
from ._masked_image import MaskedImageViT
from ._options import core_config
from ._presets import MASKED_IMAGES, VISION
from ._registration import register_presets
from ._released import BranchOptions
from ._vit_weights import BeginsFromViT, resize_positions

FROM_TASK = ("img_size", "patch_size")


class ViTModel(BeginsFromViT, Classifier, ViTClassifier):
    """A ViT with a head that scores classes, or that predicts hidden patches; each preset is a subclass. Released files
    have timm's names or BEiT's.

    Args:
        config: of the core.
        num_classes: scores.
    """

    config_class = ViTConfig
    hub = ImageHub
    fits = FITTING_TASKS

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> Any:
        """Build a model for the task's classes, or for its hidden patches.

        Raises:
            ValueError: options contradict each other.
        """
        if isinstance(task, PredictsPatches):
            return MaskedImageViT(core_config(cfg, ViTConfig, cls.preset), task.patch_vocab_size)
        return super().build_model(cfg, task)

    def __init__(self, config: ViTConfig, num_classes: int):
        ViTClassifier.__init__(self, config, num_classes)

    def forward(self, patches: Tensor | Sequence[Bands]) -> Tensor:
        """Scores (batch, classes); arguments as for ``ViT.forward_patches``."""
        return self.forward_patches(patches)

    def extract_features(self, patches: Tensor | Sequence[Bands]) -> Tensor:
        """Features (batch, tokens, width) instead of scores."""
        return self.model.forward_patches(patches)

    def adapt(self, state_dict: dict[str, Any]) -> None:
        """Let a state dict for other classes or another size be loaded: the head stays as initialised, positions are
        interpolated."""
        Classifier.adapt(self, state_dict)
        resize_positions(state_dict, self.model.config)


register_presets(ViTModel, {**VISION, **MASKED_IMAGES}, ViTConfig, BranchOptions, FROM_TASK)
