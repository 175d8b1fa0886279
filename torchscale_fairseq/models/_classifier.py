"""The base of models that score classes of images or slides, and may begin from released weights."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask
from torch import Tensor, nn

from ._options import Preset, core_config
from ._pretrained import Pretrained
from ._released import begin_from, read_released
from ._self_distillation import SelfDistillationModel

logger = logging.getLogger(__name__)


class Classifier(Pretrained, BaseFairseqModel):
    """A body, ``model``, and a ``head`` that keeps its initial values when weights for other classes are loaded. A
    subclass is also the core's classifier; each of its presets is a subclass."""

    preset: Preset
    fits: Mapping[str, Sequence[str]]
    needs_data = False
    config_class: Any
    """The config of the core."""
    kind: str
    """A word for messages, with its article."""
    advice: str
    """A way out for the user whose released weights have other shapes."""
    wrappers: Sequence[str]
    """Prefixes that parameters may have in released files."""
    head: nn.Linear

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> Any:
        """Build a model for the task's classes, or a student and a teacher for self-distillation.

        Raises:
            ValueError: options contradict each other.
        """
        config = core_config(cfg, cls.config_class, cls.preset)
        if isinstance(task, FairseqTask) and task.cfg._name == "self_distillation":
            return SelfDistillationModel(cls, config, task.cfg)
        return cls(config, task.num_classes)

    def load_weights(self, path: str | Path, branch: str = "teacher") -> None:
        """Begin from a file of released weights; its head is taken if it is for as many classes.

        Args:
            path: of the file.
            branch: teacher or student; which of them is taken from a file that has both.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is not of this architecture.
        """
        given = self.own_names(read_released(path, self.wrappers, branch))
        self.adapt(given)
        begin_from(self, given, path, kind=self.kind, advice=self.advice)

    def own_names(self, released: dict[str, Tensor]) -> dict[str, Tensor]:
        """Released weights by this model's names."""
        raise NotImplementedError

    def embed_images(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width), seen as -1 to 1, to the vectors (batch, width) that the head scores.
        Positions are interpolated for images of another size than img_size."""
        vectors: Tensor = self.fc_norm(self.model.pool(self.model(images)))
        return vectors

    def adapt(self, state_dict: dict[str, Any]) -> None:
        """Put this model's own head in a state dict that has none of its shape."""
        for key, value in self.head.state_dict(prefix="head.").items():
            if key not in state_dict or state_dict[key].shape != value.shape:
                logger.warning("left as initialised, since the checkpoint has none for these classes: %s", key)
                state_dict[key] = value

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Let a checkpoint for other classes be loaded."""
        super().upgrade_state_dict_named(state_dict, name)
        self.adapt(state_dict)

    def max_positions(self) -> None:
        """The task knows how large images and slides are."""
