"""LongViT: ``longvit_small`` and other sizes, for tasks that read images of any size."""

import logging
from collections.abc import Sequence
from typing import Any

from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor

from torchscale_fairseq.core.architectures.longvit import LongViTClassifier, resized_positions
from torchscale_fairseq.core.config import LongViTConfig
from torchscale_fairseq.core.ops.patch_embedding import Bands
from torchscale_fairseq.core.parallel.sequence import SequenceSlice

from ._options import ModelOptions, Preset, core_config, fairseq_dataclass
from ._presets import IMAGES

logger = logging.getLogger(__name__)

FROM_TASK = ("img_size", "patch_size")
HEAD = ("head.weight", "head.bias")
POSITIONS = "model.pos_embed"


class LongViTModel(BaseFairseqModel, LongViTClassifier):
    """A LongViT with a head that scores classes; each preset is a subclass. Parameters have the released names.

    Args:
        config: of the core.
        num_classes: scores.
    """

    preset: Preset

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

    def max_positions(self) -> None:
        """The task knows how large images are."""

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Let a checkpoint for other classes or another size be loaded: the head stays as initialised, positions are
        interpolated."""
        super().upgrade_state_dict_named(state_dict, name)
        own = self.state_dict()
        for key in HEAD:
            if key not in state_dict or state_dict[key].shape != own[key].shape:
                logger.warning("left as initialised, since the checkpoint is for other classes: %s", key)
                state_dict[key] = own[key]
        if POSITIONS in state_dict:
            side = self.model.config.img_size // self.model.config.patch_size
            state_dict[POSITIONS] = resized_positions(state_dict[POSITIONS], side, side)


for _name, _preset in IMAGES.items():
    register_model(
        _name,
        dataclass=fairseq_dataclass(f"{_name}_options", LongViTConfig, _preset, ModelOptions, from_task=FROM_TASK),
    )(type(_name, (LongViTModel,), {"preset": _preset, "__doc__": LongViTModel.__doc__}))
