"""BEiT-3 with a head, behind fairseq's interface: a model for each job that it is fine-tuned for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor

from torchscale_fairseq.core.architectures.beit3_captioning import BEiT3ForCaptioning
from torchscale_fairseq.core.architectures.beit3_jobs import (
    BEiT3ForImageClassification,
    BEiT3ForQuestionAnswering,
    BEiT3ForRetrieval,
    BEiT3ForVisualReasoning,
)
from torchscale_fairseq.core.config import BEiT3Config
from torchscale_fairseq.core.ops.patch_embedding import whole_images

from ._beit3_weights import adapt, load_weights

BODY = "beit3."
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and deviation of red, green and blue from 0 to 1, by which the released classifiers normalise images."""


class JobModel(BaseFairseqModel):
    """Goes after a class of the core, which has the parameters."""

    pad: int

    @classmethod
    def build(cls, config: BEiT3Config, task: Any) -> "JobModel":
        """Build a model for the task's dictionary."""
        model: JobModel = cls(config)
        model.pad = task.source_dictionary.pad()
        return model

    def load_weights(self, path: str | Path) -> None:
        """Begin from a file of released weights, or from a checkpoint; a head is taken if the file has it.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: it is not of this architecture.
        """
        load_weights(self, path, BODY)

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """Let a checkpoint for another img_size, or longer texts, be loaded."""
        super().upgrade_state_dict_named(state_dict, name)
        adapt(state_dict, self, BODY)

    def max_positions(self) -> None:
        """The task checks lengths."""


class ImageTextJob(JobModel):
    """A model of a job that reads images with texts."""

    def extract_features(self, captions: Tensor | None = None, images: Tensor | None = None) -> Tensor:
        """Features (batch, tokens, width) of the class token, the patches and the words that there are, in this order.

        Args:
            captions: (batch, words), or None.
            images: (batch, channels, img_size, img_size), or None.
        """
        features: Tensor = self.encode(images, captions, None if captions is None else captions.eq(self.pad))
        return features

    def embed_images(self, images: Tensor) -> Tensor:
        """(batch, channels, img_size, img_size) to the class token's features (batch, width)."""
        return self.extract_features(None, images)[:, 0]

    def embed_texts(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """(batch, words) to the features (batch, width) of <s>."""
        return self.extract_features(tokens)[:, 0]


class QuestionAnsweringModel(BEiT3ForQuestionAnswering, ImageTextJob):
    """Scores the answers of ``--task visual_question_answering``."""

    @classmethod
    def build(cls, config: BEiT3Config, task: Any) -> "QuestionAnsweringModel":
        """Build a model for the task's dictionary and answers."""
        model = cls(config, task.num_classes)
        model.pad = task.source_dictionary.pad()
        return model

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """(batch, channels, img_size, img_size) and (batch, words) to (batch, answers)."""
        return BEiT3ForQuestionAnswering.forward(self, images, tokens, tokens.eq(self.pad))


class VisualReasoningModel(BEiT3ForVisualReasoning, ImageTextJob):
    """Scores false and true for ``--task visual_reasoning``."""

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """(batch, 2, channels, img_size, img_size) and (batch, words) to (batch, 2)."""
        return BEiT3ForVisualReasoning.forward(self, images, tokens, tokens.eq(self.pad))


class CaptioningModel(BEiT3ForCaptioning, ImageTextJob):
    """Predicts masked words of captions for ``--task image_captioning``."""

    def forward(self, images: Tensor, tokens: Tensor, masked_tokens: Tensor | None = None) -> tuple[Tensor]:
        """Scores (masked, vocabulary), or (batch, words, vocabulary) without masked_tokens (batch, words), as the
        first of a tuple: fairseq's criterions expect one."""
        return (BEiT3ForCaptioning.forward(self, images, tokens, tokens.eq(self.pad), masked_tokens),)


class RetrievalModel(BEiT3ForRetrieval, ImageTextJob):
    """Embeds images and texts for ``--task image_text_retrieval``."""

    def embed_texts(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """(batch, words) to unit vectors (batch, width)."""
        return BEiT3ForRetrieval.embed_texts(self, tokens, tokens.eq(self.pad))

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (batch, width) of images and of texts, and the factor of their products."""
        return BEiT3ForRetrieval.forward(self, images, tokens, tokens.eq(self.pad))


class ImageClassificationModel(BEiT3ForImageClassification, JobModel):
    """Scores the classes of ``--task image_classification``."""

    @classmethod
    def build(cls, config: BEiT3Config, task: Any) -> "ImageClassificationModel":
        """Build a model for the task's classes."""
        return cls(config, task.num_classes)

    def forward(self, patches: Any) -> Tensor:
        """Patches of images (batch, patches, 3, patch_size, patch_size) of uint8, or files' parts, to (batch, classes).

        Arguments are those of ``LongViT.forward_patches``.
        """
        return BEiT3ForImageClassification.forward(self, self._pixels(patches))

    def extract_features(self, patches: Any) -> Tensor:
        """Features (batch, 1 + patches, width) of the class token and the patches; arguments as for ``forward``."""
        return self.encode(self._pixels(patches), None)

    def embed_images(self, images: Tensor) -> Tensor:
        """Images (batch, channels, img_size, img_size), from -1 to 1, to the class token's features (batch, width)."""
        return self.encode(_normalised((images.to(self.fc_norm.weight.dtype) + 1.0) / 2.0), None)[:, 0]

    def _pixels(self, patches: Any) -> Tensor:
        weight = self.fc_norm.weight
        return _normalised(whole_images(patches, weight.device).to(weight.dtype) / 255.0)


def _normalised(pixels: Tensor) -> Tensor:
    """Red, green and blue from 0 to 1, as the released classifiers see them."""
    mean, std = (torch.tensor(x, dtype=pixels.dtype, device=pixels.device) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean[:, None, None]) / std[:, None, None]


JOBS: Mapping[str, type[JobModel]] = {
    "image_classification": ImageClassificationModel,
    "visual_question_answering": QuestionAnsweringModel,
    "visual_reasoning": VisualReasoningModel,
    "image_captioning": CaptioningModel,
    "image_text_retrieval": RetrievalModel,
}
"""By the name of the task."""
