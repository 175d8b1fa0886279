"""Slide encoders: ``slide_encoder_base`` and other sizes, for tasks on whole slides."""

from pathlib import Path
from typing import Any

from fairseq.models import BaseFairseqModel
from torch import Tensor

from torchscale_fairseq.core.architectures.slide_encoder import SlideClassifier
from torchscale_fairseq.core.config import SlideEncoderConfig
from torchscale_fairseq.core.parallel.sequence import SequenceSlice

from ._fits import SLIDES as FITTING_TASKS
from ._hubs import SlideHub
from ._options import Preset, core_config
from ._presets import SLIDES
from ._pretrained import Pretrained
from ._registration import register_presets
from ._released import FreshHead, PretrainedOptions, begin_from, read_released

WRAPPERS = ("module.", "slide_encoder.", "model.")
"""Prefixes that a slide encoder's parameters may have."""
HEADS = {"classifier.0.": "head.", "classifier.": "head.", "head.": "head."}
"""Beginnings of the names of a head's parameters, and ours."""
ADVICE = "take the --arch and the options, such as --feature-dim, that it was made for"


class SlideEncoderModel(FreshHead, Pretrained, BaseFairseqModel, SlideClassifier):
    """A slide encoder with a head that scores classes; each preset is a subclass. Parameters of the encoder have
    Prov-GigaPath's names.

    Args:
        config: of the core.
        num_classes: scores.
    """

    preset: Preset
    hub = SlideHub
    needs_data = False
    fits = FITTING_TASKS

    def __init__(self, config: SlideEncoderConfig, num_classes: int):
        SlideClassifier.__init__(self, config, num_classes)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "SlideEncoderModel":
        """Build a model for the task's classes.

        Raises:
            ValueError: options contradict each other.
        """
        return cls(core_config(cfg, SlideEncoderConfig, cls.preset), task.num_classes)

    def forward(
        self,
        features: Tensor,
        coords: Tensor,
        padding_mask: Tensor | None = None,
        sequence_slice: SequenceSlice | None = None,
    ) -> Tensor:
        """Scores (batch, classes); arguments as for ``SlideEncoder``."""
        return SlideClassifier.forward(self, features, coords, padding_mask, sequence_slice)

    def extract_features(self, features: Tensor, coords: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Embeddings (batch, embedding_dim) instead of scores."""
        embeddings: Tensor = self.model(features, coords, padding_mask)
        return embeddings

    def load_weights(self, path: str | Path) -> None:
        """Begin from a file of weights in Prov-GigaPath's layout; its head is taken if it is for as many classes.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is not of this architecture.
        """
        given = {_our_name(name): value for name, value in read_released(path, WRAPPERS).items()}
        given.pop("model.pos_embed", None)  # fixed positions, which some files store
        self.keep_head(given)
        begin_from(self, given, path, kind="a slide encoder", advice=ADVICE)

    def max_positions(self) -> None:
        """The grid limits where tiles may be, not how many there are."""

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Let a checkpoint for other classes be loaded: the head stays as initialised."""
        super().upgrade_state_dict_named(state_dict, name)
        self.keep_head(state_dict)


def _our_name(name: str) -> str:
    for theirs, ours in HEADS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return f"model.{name}"


register_presets(SlideEncoderModel, SLIDES, SlideEncoderConfig, PretrainedOptions)
