"""BEiT-3: ``beit3_base`` and its sizes, for the task image_text and the jobs that it is fine-tuned for."""

from pathlib import Path
from typing import Any

import torch
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask
from torch import Tensor, nn

from torchscale_fairseq.core.architectures.beit3 import BEiT3
from torchscale_fairseq.core.config import BEiT3Config
from torchscale_fairseq.core.layers.heads import MaskedLanguageModelHead
from torchscale_fairseq.core.layers.norm import build_norm

from ._beit3_jobs import JOBS
from ._beit3_weights import NO_WORDS, adapt, encoder_config, load_weights
from ._fits import IMAGE_TEXT as FITTING_TASKS
from ._hubs import ImageHub, ImageTextHub
from ._options import Preset
from ._presets import IMAGE_TEXT
from ._pretrained import Pretrained
from ._registration import register_presets
from ._released import PretrainedOptions

FROM_TASK = ("img_size", "patch_size", "max_source_positions")
BODY = "core."


def hub_of(cfg: Any, task: Any, models: list[Any]) -> Any:
    """The interface that ``from_pretrained`` returns; arguments as for the hubs."""
    hub = ImageTextHub if hasattr(task, "text_encoder") else ImageHub
    return hub(cfg, task, models)


class ImageTextModel(Pretrained, BaseFairseqModel):
    """A BEiT3 with heads for what it is pretrained on; each preset is a subclass.

    Masked words are predicted from a text alone and with its image, masked patches from an image alone and with its
    text (BEiT-3, arXiv:2208.10442, sec. 2.2); whether a text belongs to an image from the class token.

    Args:
        config: of the core.
        pad: index of padding in the dictionary.
    """

    preset: Preset
    hub = staticmethod(hub_of)
    fits = FITTING_TASKS

    def __init__(self, config: BEiT3Config, pad: int):
        super().__init__()
        self.pad = pad
        self.core = BEiT3(config)
        width = config.encoder_embed_dim
        norm = build_norm(config.norm, width, config.layernorm_eps)
        self.word_head = MaskedLanguageModelHead(self.core.text_embed, config.activation_fn, norm)
        self.patch_head = nn.Linear(width, config.in_chans * config.patch_size**2)
        self.match_head = nn.Linear(width, 2)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> Any:
        """Build a model for the task's dictionary and images, with the head of its job if it is no pretraining.

        Raises:
            ValueError: options contradict each other.
        """
        dictionary = task.source_dictionary
        config = encoder_config(cfg, cls.preset, NO_WORDS if dictionary is None else len(dictionary))
        job = JOBS.get(task.cfg._name) if isinstance(task, FairseqTask) else None
        return cls(config, dictionary.pad()) if job is None else job.build(config, task)

    def load_weights(self, path: str | Path) -> None:
        """Begin from a file of released weights, or from a checkpoint.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is not of this architecture.
        """
        load_weights(self, path, BODY)

    def forward(
        self,
        images: Tensor,
        masked_patches: Tensor,
        captions: Tensor,
        masked_captions: Tensor,
        wanted: Tensor,
        other_captions: Tensor,
    ) -> dict[str, Any]:
        """All that is predicted of a batch.

        Args:
            images: (batch, channels, img_size, img_size).
            masked_patches: (batch, patches), True for patches that are hidden and predicted.
            captions, masked_captions: (batch, words), whole and masked.
            wanted: (batch, words), True where masked_captions' word is predicted.
            other_captions: (batch, words), of other images.

        Returns:
            words: a list of (wanted, vocabulary), from texts alone and from pairs; patches: a list of (masked,
            channels * patch_size ** 2), from images alone and from pairs; match: (2 batch, 2), scores of the captions
            and of the other ones to belong to the images, the second column for yes.
        """
        text = self._read(masked_captions)
        image = self._read(None, images, masked_patches)
        first_word = 1 + masked_patches.size(1)
        with_text = self._read(captions, images, masked_patches)
        with_image = self._read(masked_captions, images)
        matches = [self._read(words, images)[:, 0] for words in (captions, other_captions)]
        return {
            "words": [self.word_head(x[wanted]) for x in (text, with_image[:, first_word:])],
            "patches": [self.patch_head(x[:, 1:first_word][masked_patches]) for x in (image, with_text)],
            "match": self.match_head(torch.cat(matches)),
        }

    def extract_features(self, captions: Tensor | None = None, images: Tensor | None = None) -> Tensor:
        """Features (batch, tokens, width) of the class token, the patches and the words that there are, in this order.

        Args:
            captions: (batch, words), or None.
            images: (batch, channels, img_size, img_size), or None.

        Raises:
            ValueError: there is neither, an image has another size, or a caption is too long.
        """
        return self._read(captions, images)

    def embed_images(self, images: Tensor) -> Tensor:
        """(batch, channels, img_size, img_size) to the class token's features (batch, width)."""
        return self._read(None, images)[:, 0]

    def embed_texts(self, captions: Tensor) -> Tensor:
        """(batch, words) to the features (batch, width) of <s>."""
        return self._read(captions)[:, 0]

    def _read(self, words: Tensor | None, images: Tensor | None = None, masked: Tensor | None = None) -> Tensor:
        padding = None if words is None else words.eq(self.pad)
        features: Tensor = self.core(words, images, padding, vision_masked_position=masked)["encoder_out"]
        return features

    def max_positions(self) -> None:
        """The task checks lengths."""

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Let a checkpoint for another img_size be loaded: positions of patches are interpolated."""
        super().upgrade_state_dict_named(state_dict, name)
        adapt(state_dict, self, BODY)


register_presets(ImageTextModel, IMAGE_TEXT, BEiT3Config, PretrainedOptions, FROM_TASK)
