"""BEiT-3 with the heads of the jobs that it is fine-tuned for. Parameters have the names of the released files.

"Image as a Foreign Language", arXiv:2208.10442, sec. 3; initial values of heads are those of BEiT.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import BEiT3Config
from .beit3 import BEiT3

STD = 0.02
INITIAL_TEMPERATURE = 0.07
"""CLIP's (arXiv:2103.00020, sec. 2.5)."""


class BEiT3Job(nn.Module):
    """A BEiT3 under the released name; a subclass adds a head.

    Args:
        config: of the encoder.
        normalize_output: whether a norm follows the last layer.
    """

    normalize_output = True

    def __init__(self, config: BEiT3Config):
        super().__init__()
        self.beit3 = BEiT3(dataclasses.replace(config, normalize_output=self.normalize_output))
        mask_token = self.beit3.vision_embed.mask_token
        assert mask_token is not None
        mask_token.requires_grad_(False)  # no patch is masked, and DistributedDataParallel waits for every gradient

    def encode(self, images: Tensor | None, tokens: Tensor | None, padding: Tensor | None = None) -> Tensor:
        """Features (batch, tokens, width) of the class token, the patches and the words that there are, in this order.

        Args:
            images: (batch, channels, img_size, img_size), or None.
            tokens: (batch, words), or None.
            padding: (batch, words), True for padding.

        Raises:
            InputError: a text is longer than max_source_positions.
            ValueError: there is no input, or an image has another size.
        """
        features: Tensor = self.beit3(tokens, images, padding)["encoder_out"]
        return features


class Pooler(nn.Module):
    """tanh(dense(norm(first token)))."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dense = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, tokens, width) to (batch, width)."""
        return torch.tanh(self.dense(self.norm(features[:, 0])))


class ReasoningHead(nn.Module):
    """dense2(gelu(norm2(dense1(norm1(x)))))."""

    def __init__(self, width: int, inner: int, classes: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.dense1 = nn.Linear(width, inner)
        self.norm2 = nn.LayerNorm(inner)
        self.dense2 = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) to (batch, classes)."""
        scores: Tensor = self.dense2(F.gelu(self.norm2(self.dense1(self.norm1(x)))))
        return scores


class BEiT3ForImageClassification(BEiT3Job):
    """The mean of an image's patches, normalised, to a score for each class.

    Args:
        config: of the encoder, of which the half for texts is not trained.
        num_classes: scores.
    """

    normalize_output = False

    def __init__(self, config: BEiT3Config, num_classes: int):
        super().__init__(config)
        self.fc_norm = nn.LayerNorm(config.encoder_embed_dim)
        self.head = nn.Linear(config.encoder_embed_dim, num_classes)
        initialize_head(self.head)
        for name, parameter in self.beit3.named_parameters():
            if ".B." in name or name.startswith("text_embed."):
                parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, img_size, img_size) to (batch, classes)."""
        scores: Tensor = self.head(self.fc_norm(self.encode(images, None)[:, 1:].mean(1)))
        return scores


class BEiT3ForQuestionAnswering(BEiT3Job):
    """A score for each answer of a fixed set, from an image's class token after it has read the question.

    Args:
        config: of the encoder.
        num_answers: scores.
    """

    normalize_output = False

    def __init__(self, config: BEiT3Config, num_answers: int):
        super().__init__(config)
        width = config.encoder_embed_dim
        self.pooler = Pooler(width)
        self.head = nn.Sequential(
            nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, num_answers)
        )
        initialize_head(self.pooler)
        initialize_head(self.head)

    def forward(self, images: Tensor, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """Arguments of ``encode`` to (batch, answers)."""
        scores: Tensor = self.head(self.pooler(self.encode(images, tokens, padding)))
        return scores


class BEiT3ForVisualReasoning(BEiT3Job):
    """Whether a sentence is true of two images (NLVR2), each of which is read together with it.

    Args:
        config: of the encoder.
        num_classes: scores, 2 for false and true.
    """

    def __init__(self, config: BEiT3Config, num_classes: int = 2):
        super().__init__(config)
        width = config.encoder_embed_dim
        self.head = ReasoningHead(4 * width, 2 * width, num_classes)
        initialize_head(self.head)

    def forward(self, images: Tensor, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """Scores (batch, classes), from the class tokens of each image and of the sentence read with it.

        Args:
            images: (batch, 2, channels, img_size, img_size).
            tokens, padding: (batch, words), as for ``encode``.
        """
        split = self.beit3.config.num_patches + 1
        first, second = (self.encode(side, tokens, padding) for side in images.unbind(1))
        scores: Tensor = self.head(torch.cat((first[:, 0], first[:, split], second[:, 0], second[:, split]), -1))
        return scores


class BEiT3ForRetrieval(BEiT3Job):
    """Embeddings of images and of texts, near each other where they belong together (CLIP, arXiv:2103.00020)."""

    def __init__(self, config: BEiT3Config):
        super().__init__(config)
        width = config.encoder_embed_dim
        self.language_head = nn.Linear(width, width, bias=False)
        self.vision_head = nn.Linear(width, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / INITIAL_TEMPERATURE)))
        initialize_head(self.language_head)
        initialize_head(self.vision_head)

    def embed_images(self, images: Tensor) -> Tensor:
        """(batch, channels, img_size, img_size) to unit vectors (batch, width)."""
        return F.normalize(self.vision_head(self.encode(images, None)[:, 0]), dim=-1)

    def embed_texts(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """(batch, words) to unit vectors (batch, width)."""
        return F.normalize(self.language_head(self.encode(None, tokens, padding)[:, 0]), dim=-1)

    def forward(self, images: Tensor, tokens: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of the images and of the texts, and the factor of their products (the inverse temperature)."""
        return self.embed_images(images), self.embed_texts(tokens, padding), self.logit_scale.exp()


def initialize_head(head: nn.Module) -> None:
    """Draw weights from N(0, 0.02), cut at two deviations; biases are zero."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=STD, a=-2 * STD, b=2 * STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
