"""``generate`` with the core's state of decoding."""

from typing import Any

from torch import Tensor

from .cache import DecodingCache


class StatefulGeneration:
    """Goes before GenerationMixin: the model makes its cache itself, and is given the tokens that it has not seen."""

    config: Any

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

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
