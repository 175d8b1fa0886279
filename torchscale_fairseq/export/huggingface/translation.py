"""Translation models: the core's EncoderDecoder, with attention or retention in the decoder."""

from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from torchscale_fairseq.export.encoding import encode

from .base import CoreModel, hidden
from .cache import DecodingCache
from .causal import IGNORED, label_loss
from .generation import StatefulGeneration


class SourceEncoder(nn.Module):
    """The encoder as generate calls it. It shares its parameters with the core, and holds none under its own name."""

    main_input_name = "input_ids"

    def __init__(self, core: Any):
        super().__init__()
        self._held = (core,)  # in a tuple, so that it is not registered a second time

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        """Features (batch, seq, width) of input_ids (batch, seq)."""
        out = encode(self._held[0].encoder, input_ids, hidden(attention_mask))
        return BaseModelOutput(last_hidden_state=out["encoder_out"])


class CoreForSeq2SeqLM(StatefulGeneration, CoreModel, GenerationMixin):
    """A translation model."""

    def __init__(self, config: Any, *arguments: Any, **keywords: Any):
        super().__init__(config, *arguments, **keywords)
        self._encoder = SourceEncoder(self.core)

    def get_encoder(self, *_: Any, **__: Any) -> nn.Module:
        """The source side."""
        return self._encoder

    def get_decoder(self) -> nn.Module:
        """The target side."""
        return self.core.decoder

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of source tokens."""
        return self.core.encoder.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The projection to the target vocabulary."""
        return self.core.decoder.output_projection

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels (batch, seq) after the end of sentence that fairseq starts with."""
        shifted = labels.new_full(labels.shape, self.config.decoder_start_token_id)
        shifted[:, 1:] = labels[:, :-1]
        return shifted.masked_fill(shifted == IGNORED, self.config.pad_token_id)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        cache: DecodingCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """Logits of the next target tokens.

        Args:
            input_ids: (batch, source), unless there are encoder_outputs.
            attention_mask: (batch, source), 0 for padding.
            decoder_input_ids: (batch, target); with a cache, the tokens it has not seen.
            decoder_attention_mask: (batch, all target tokens so far), 0 for padding.
            encoder_outputs: of an earlier call.
            cache: likewise.
            labels: (batch, target), -100 where no loss is wanted; decoder_input_ids follow from them.
            use_cache: return a cache.
        """
        encoded: dict[str, Any] = {}
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError("a translation model needs input_ids or encoder_outputs.")
            encoded = encode(self.core.encoder, input_ids, hidden(attention_mask))
            encoder_outputs = BaseModelOutput(last_hidden_state=encoded["encoder_out"])
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("a translation model needs decoder_input_ids or labels.")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if cache is None and use_cache:
            cache = DecodingCache()
        tokens = decoder_input_ids if cache is None else cache.extend(decoder_input_ids)
        memory = {**encoded, "encoder_out": encoder_outputs[0], "encoder_padding_mask": hidden(attention_mask)}
        logits, extra = self.core.decoder(
            tokens,
            self_attn_padding_mask=hidden(decoder_attention_mask),
            encoder_out=memory,
            incremental_state=None if cache is None else cache.state,
        )
        loss = None
        if labels is not None:
            loss = label_loss(logits, labels) + (self.balance_loss(extra["l_aux"]) if self.training else 0.0)
        output = Seq2SeqLMOutput(loss=loss, logits=logits, cache=cache, encoder_last_hidden_state=encoder_outputs[0])
        return output.to_tuple() if return_dict is False else output
