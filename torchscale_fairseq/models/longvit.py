"""LongViT: ``longvit_small`` and other sizes, for tasks that read images of any size."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor

from torchscale_fairseq.checkpoints.reading import CheckpointError, read_file
from torchscale_fairseq.core.architectures.longvit import LongViTClassifier, resized_positions
from torchscale_fairseq.core.config import LongViTConfig
from torchscale_fairseq.core.ops.patch_embedding import Bands
from torchscale_fairseq.core.parallel.sequence import SequenceSlice

from ._fits import IMAGES as FITTING_TASKS
from ._hubs import ImageHub
from ._options import ModelOptions, Preset, core_config, fairseq_dataclass
from ._presets import IMAGES
from ._pretrained import Pretrained

logger = logging.getLogger(__name__)

FROM_TASK = ("img_size", "patch_size")
POSITIONS = "model.pos_embed"
ENTRIES = ("model", "teacher", "state_dict")
"""Where a file of weights may have them, if not at its top."""
WRAPPERS = ("module.", "backbone.", "model.")
"""What may stand before the names of LongViT's parameters."""


@dataclass
class LongViTOptions(ModelOptions):
    """Options of fairseq's side alone."""

    pretrained: Optional[str] = field(  # noqa: UP045 - fairseq reads typing's form only
        default=None,
        metadata={"help": "file of weights to begin from, such as the released ones, whose names are the same"},
    )


class LongViTModel(Pretrained, BaseFairseqModel, LongViTClassifier):
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
        given = _weights(read_file(path), path)
        own = self.state_dict()
        missing = [name for name in own if name.startswith("model.") and name not in given]
        if missing:
            raise CheckpointError(f"--pretrained {path} has no {missing[0]}; it is not a LongViT of this architecture.")
        state = {name: given[name] for name in own if name in given}
        self._adapt(state)
        for name, value in state.items():
            if value.shape != own[name].shape:
                raise CheckpointError(
                    f"--pretrained {path} has {name} of shape {tuple(value.shape)}, and this model "
                    f"{tuple(own[name].shape)}; take the --arch and --patch-size that it was made for."
                )
        self.load_state_dict(state, strict=False)
        logger.info("began from %s: %s of %s tensors", path, len(state), len(own))

    def max_positions(self) -> None:
        """The task knows how large images are."""

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Let a checkpoint for other classes or another size be loaded: the head stays as initialised, positions are
        interpolated."""
        super().upgrade_state_dict_named(state_dict, name)
        self._adapt(state_dict)

    def _adapt(self, state_dict: dict[str, Any]) -> None:
        for key, value in self.head.state_dict(prefix="head.").items():
            if key not in state_dict or state_dict[key].shape != value.shape:
                logger.warning("left as initialised, since the checkpoint is for other classes: %s", key)
                state_dict[key] = value
        if POSITIONS in state_dict:
            side = self.model.config.img_size // self.model.config.patch_size
            state_dict[POSITIONS] = resized_positions(state_dict[POSITIONS], side, side)


def _weights(state: Any, path: str | Path) -> dict[str, Tensor]:
    """Tensors by our names."""
    entry = next((name for name in ENTRIES if isinstance(state, Mapping) and name in state), None)
    state = state if entry is None else state[entry]
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"--pretrained {path} holds no weights by name.")
    result = {}
    for name, value in state.items():
        bare = name
        for wrapper in WRAPPERS:
            bare = bare.removeprefix(wrapper)
        result[bare if bare.startswith(("fc_norm.", "head.")) else f"model.{bare}"] = value
    return result


for _name, _preset in IMAGES.items():
    register_model(
        _name,
        dataclass=fairseq_dataclass(f"{_name}_options", LongViTConfig, _preset, LongViTOptions, from_task=FROM_TASK),
    )(type(_name, (LongViTModel,), {"preset": _preset, "__doc__": LongViTModel.__doc__}))
