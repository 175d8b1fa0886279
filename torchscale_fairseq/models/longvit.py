"""LongViT: ``longvit_small`` and other sizes, for tasks that read images of any size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq.models import BaseFairseqModel
from torch import Tensor

from torchscale_fairseq.core.architectures.longvit import LongViTClassifier, resized_positions
from torchscale_fairseq.core.config import LongViTConfig
from torchscale_fairseq.core.ops.patch_embedding import Bands
from torchscale_fairseq.core.parallel.sequence import SequenceSlice

from ._fits import IMAGES as FITTING_TASKS
from ._hubs import ImageHub
from ._options import Preset, core_config
from ._presets import IMAGES
from ._pretrained import Pretrained
from ._registration import register_presets
from ._released import FreshHead, PretrainedOptions, begin_from, read_released

FROM_TASK = ("img_size", "patch_size")
POSITIONS = "model.pos_embed"
ADVICE = "take the --arch and --patch-size that it was made for"
WRAPPERS = ("module.", "backbone.", "model.")
"""Prefixes that LongViT's parameters may have."""


class LongViTModel(FreshHead, Pretrained, BaseFairseqModel, LongViTClassifier):
    """A LongViT with a head that scores classes; each preset is a subclass. Parameters have the released names.

    Args:
        config: of the core.
        num_classes: scores.
    """

    preset: Preset
    hub = ImageHub
    needs_data = False
    fits = FITTING_TASKS

    def __init__(self, config: LongViTConfig, num_classes: int):
        LongViTClassifier.__init__(self, config, num_classes)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "LongViTModel":
        """Build a model for the task's images and classes.

        Raises:
            ValueError: options contradict each other.
        """
        return cls(core_config(cfg, LongViTConfig, cls.preset), task.num_classes)

    def forward(self, patches: Tensor | Sequence[Bands], sequence_slice: SequenceSlice | None = None) -> Tensor:
        """Scores (batch, classes); arguments as for ``LongViT.forward_patches``."""
        return self.forward_patches(patches, sequence_slice)

    def extract_features(self, patches: Tensor | Sequence[Bands]) -> Tensor:
        """Features (batch, patches, width) instead of scores."""
        return self.model.forward_patches(patches)

    def load_weights(self, path: str | Path) -> None:
        """Begin from a file of weights, whose head and its norm are taken if it has them for as many classes; positions
        are interpolated.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is not of this architecture.
        """
        bare = read_released(path, WRAPPERS)
        given = {name if name.startswith(("fc_norm.", "head.")) else f"model.{name}": v for name, v in bare.items()}
        self._adapt(given)
        begin_from(self, given, path, kind="a LongViT", advice=ADVICE)

    def max_positions(self) -> None:
        """The task knows how large images are."""

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Let a checkpoint for other classes or another size be loaded: the head stays as initialised, positions are
        interpolated."""
        super().upgrade_state_dict_named(state_dict, name)
        self._adapt(state_dict)

    def _adapt(self, state_dict: dict[str, Any]) -> None:
        self.keep_head(state_dict)
        if POSITIONS in state_dict:
            side = self.model.config.img_size // self.model.config.patch_size
            state_dict[POSITIONS] = resized_positions(state_dict[POSITIONS], side, side)


register_presets(LongViTModel, IMAGES, LongViTConfig, PretrainedOptions, FROM_TASK)
