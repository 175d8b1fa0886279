"""Slide encoders: ``slide_encoder_base`` and other sizes, for tasks on whole slides."""

from torch import Tensor

from torchscale_fairseq.core.architectures.slide_encoder import SlideClassifier
from torchscale_fairseq.core.config import SlideEncoderConfig
from torchscale_fairseq.core.parallel.sequence import SequenceSlice

from ._classifier import Classifier
from ._fits import SLIDES as FITTING_TASKS
from ._hubs import SlideHub
from ._presets import SLIDES
from ._registration import register_presets
from ._released import PretrainedOptions

HEADS = {"classifier.0.": "head.", "classifier.": "head.", "head.": "head."}
"""Beginnings of the names of a head's parameters, and ours."""


class SlideEncoderModel(Classifier, SlideClassifier):
    """A slide encoder with a head that scores classes; each preset is a subclass. Parameters of the encoder have
    Prov-GigaPath's names.

    Args:
        config: of the core.
        num_classes: scores.
    """

    config_class = SlideEncoderConfig
    hub = SlideHub
    fits = FITTING_TASKS
    kind = "a slide encoder"
    advice = "take the --arch and the options, such as --feature-dim, that it was made for"
    wrappers = ("module.", "slide_encoder.", "model.")

    def __init__(self, config: SlideEncoderConfig, num_classes: int):
        SlideClassifier.__init__(self, config, num_classes)

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

    def own_names(self, released: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of Prov-GigaPath's layout; some files store the fixed positions, which are computed here."""
        named = {_our_name(name): value for name, value in released.items()}
        named.pop("model.pos_embed", None)
        return named


def _our_name(name: str) -> str:
    for theirs, ours in HEADS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return f"model.{name}"


register_presets(SlideEncoderModel, SLIDES, SlideEncoderConfig, PretrainedOptions)
