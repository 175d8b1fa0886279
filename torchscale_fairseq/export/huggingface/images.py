"""Models of images: the core's LongViTClassifier and BEiT3."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput

from .base import CoreModel, hidden


class CoreForImageClassification(CoreModel):
    """A LongViT with a head that scores classes."""

    main_input_name = "pixel_values"

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None, **_: Any
    ) -> Any:
        """Scores of classes.

        Args:
            pixel_values: (batch, channels, height, width).
            labels: (batch,), classes.
        """
        logits = self.core(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        output = ImageClassifierOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of patches."""
        return self.core.model.patch_embed


class CoreForImageAndText(CoreModel):
    """A BEiT-3 without heads."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """Features of the class token, the patches and the words that there are, in this order.

        Args:
            input_ids: (batch, words), or None.
            pixel_values: (batch, channels, img_size, img_size), or None.
            attention_mask: (batch, words), 0 for padding.
        """
        features = self.core(input_ids, pixel_values, hidden(attention_mask))["encoder_out"]
        output = BaseModelOutput(last_hidden_state=features)
        return output.to_tuple() if return_dict is False else output

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of words."""
        return self.core.text_embed
