"""``generate`` with the core's state of decoding."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.generation import ForcedEOSTokenLogitsProcessor

from .cache import DecodingCache


class StatefulGeneration(GenerationMixin):
    """The model makes its cache itself, and is given the tokens that it has not seen."""

    config: Any

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _get_logits_processor(self, *arguments: Any, **keywords: Any) -> LogitsProcessorList:
        processors = super()._get_logits_processor(*arguments, **keywords)
        return LogitsProcessorList(
            EndAtLimit(p.max_length, p.eos_token_id) if isinstance(p, ForcedEOSTokenLogitsProcessor) else p
            for p in processors
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: DecodingCache | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = True,
        **others: Any,
    ) -> dict[str, Any]:
        """Arguments of forward for a step of generation."""
        if cache is None and use_cache:
            cache = DecodingCache()
        tokens = input_ids if cache is None else input_ids[:, cache.get_seq_length() :]
        inputs = {"cache": cache, "attention_mask": attention_mask, "use_cache": use_cache}
        if not self.config.is_encoder_decoder:
            return {**inputs, "input_ids": tokens, "logits_to_keep": others.get("logits_to_keep", 0)}
        return {
            **inputs,
            "decoder_input_ids": tokens,
            "decoder_attention_mask": others.get("decoder_attention_mask"),
            "encoder_outputs": others["encoder_outputs"],
        }


class EndAtLimit(LogitsProcessor):
    """The end of the sentence as the only token at the greatest length. It keeps its score, as in fairseq, where
    transformers' own processor takes it for certain.

    Args:
        max_length: tokens of a sequence, the end included.
        end: (number of ends,), their tokens.
    """

    def __init__(self, max_length: int, end: Tensor):
        self.max_length = max_length
        self.end = end

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (batch, vocabulary) of the tokens after input_ids (batch, seq)."""
        if input_ids.size(1) != self.max_length - 1:
            return scores
        ended = torch.full_like(scores, -torch.inf)
        ended[:, self.end] = scores[:, self.end]
        return ended
