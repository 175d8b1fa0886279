"""Language models: the core's Decoder (GPT, LongNet, BitNet) and RetNetDecoder."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from .base import CoreModel, hidden
from .cache import DecodingCache
from .generation import StatefulGeneration

IGNORED = -100
"""Label of tokens without loss."""


class CoreForCausalLM(StatefulGeneration, CoreModel, GenerationMixin):
    """A causal language model. Padding, left or right, is read off attention_mask."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: DecodingCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """Logits of the next tokens.

        Args:
            input_ids: (batch, seq); with a cache, the tokens it has not seen.
            attention_mask: (batch, all tokens so far), 0 for padding.
            cache: of an earlier call.
            labels: (batch, seq), input_ids, with -100 where no loss is wanted.
            use_cache: return a cache.
            logits_to_keep: compute only the logits of this many last tokens; 0 for all.
        """
        if cache is None and use_cache:
            cache = DecodingCache()
        tokens = input_ids if cache is None else cache.extend(input_ids)
        features, extra = self.core(
            tokens,
            self_attn_padding_mask=hidden(attention_mask),
            incremental_state=None if cache is None else cache.state,
            features_only=True,
        )
        logits = self.core.output_layer(features[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = next_token_loss(logits, labels) + (self.balance_loss(extra["l_aux"]) if self.training else 0.0)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache)
        return output.to_tuple() if return_dict is False else output

    def get_output_embeddings(self) -> nn.Module:
        """The projection to the vocabulary."""
        return self.core.output_projection


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy (nats) of each label under the logits of the token before it."""
    return label_loss(logits[:, :-1], labels[:, 1:])


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy (nats) of labels (batch, seq) that are not -100, under logits (batch, seq, vocabulary)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().to(logits.device), ignore_index=IGNORED)
