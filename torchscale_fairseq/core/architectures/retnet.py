"""RetNet: a decoder with retention instead of self-attention.

"Retentive Network: A Successor to Transformer for Large Language Models", arXiv:2307.08621.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..layers.attention_inputs import AttentionInputs
from ..layers.cache import NO_STATE, DecodingState, KeyValueCache, LayerState
from ..layers.moe import RoutingReport
from ..layers.retention import RetentionState
from ..layers.retention_inputs import RetentionInputs
from ..layers.static_state import Arena, Sizes, StaticRetention, StaticState
from ..ops.documents import known_documents
from ..ops.masks import as_mask, marked
from ..ops.padding_bias import with_padding_bias
from ..ops.retention_tables import log_decays, token_counts
from .causal import CausalStack
from .factory import LayerFactory
from .layer import Layer
from .spec import AnyRetNetConfig, retnet_spec


class RetNetLayer(Layer):
    """Retention, attention to the encoder where there is one, and feed-forward network."""

    def __init__(self, factory: LayerFactory, depth: int):
        super().__init__()
        self.retention = factory.retention()
        self.retention_layer_norm = factory.sublayer_norm()
        self._build_cross_attention(factory)
        self._build_second_half(factory, depth)

    def forward(
        self,
        x: Tensor,
        retention: RetentionInputs,
        memory: AttentionInputs | None = None,
        not_routed: Tensor | None = None,
        state: LayerState = NO_STATE,
    ) -> tuple[Tensor, RoutingReport | None]:
        """(batch, seq, width) to the same; arguments as for ``DecoderLayer``, with the inputs of retention."""
        x = self.residual(x, self.retention_layer_norm, self.retention, retention, state.self_attn)
        if self.encoder_attn is not None and memory is not None:
            x = self.residual(x, self.encoder_attn_layer_norm, self.encoder_attn, memory, state.encoder_attn)
        return self.feed_forward(x, not_routed)


class RetNetState(DecodingState):
    """All that a RetNet remembers of a batch of sequences, in memory that does not grow with them."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(0)
        self.layers = [LayerState(RetentionState(), KeyValueCache()) for _ in range(num_layers)]
        self.seen: Tensor | None = None
        """(batch,), long: tokens of each sequence so far, padding aside; (1,) while all have the same."""

    def _select(self, rows: Tensor, memory_rows: Tensor | None) -> None:
        super()._select(rows, memory_rows)
        if self.seen is not None and self.seen.size(0) > 1:
            self.seen = self.seen.index_select(0, rows)


class RetNetDecoder(CausalStack):
    """A stack of retention layers between an embedding and, by default, a projection to the vocabulary.

    Without an encoder its memory while decoding is of constant size.

    Args:
        config: the options.
        embed_tokens: token embedding; by default one is built if the config has a vocabulary (not under
            torchscale_compatible).
        output_projection: module from features to logits; by default built if the config has a vocabulary.
        is_encoder_decoder: layers also attend to an encoder's output.
    """

    config: AnyRetNetConfig

    def __init__(
        self,
        config: AnyRetNetConfig,
        embed_tokens: nn.Embedding | None = None,
        output_projection: nn.Module | None = None,
        is_encoder_decoder: bool = False,
    ):
        super().__init__(config, retnet_spec(config, is_encoder_decoder=is_encoder_decoder), embed_tokens, None)
        self._finish_decoder(output_projection)
        self.register_load_state_dict_pre_hook(_take_official_constants)  # type: ignore[no-untyped-call]

    def build_layer(self, factory: LayerFactory, depth: int) -> Layer:
        """A ``RetNetLayer``."""
        return RetNetLayer(factory, depth)

    def forward(
        self,
        prev_output_tokens: Tensor,
        incremental_state: dict[Any, Any] | None = None,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
        document_starts: Tensor | None = None,
        encoder_out: dict[str, Any] | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Decode a batch: all positions at once, or those that the state has not seen.

        Args:
            prev_output_tokens: (batch, seq), the whole sequence so far, also with incremental_state.
            incremental_state: a dict of the caller's, empty at first. What it has seen is not computed again:
                the first call may bring a prompt of any length, later ones any number of new tokens.
            features_only: skip the output projection.
            return_all_hiddens: accepted as by TorchScale, which always fills inner_states too.
            token_embeddings: (batch, seq or new tokens, width), in place of embed_tokens.
            self_attn_padding_mask: (batch, seq or new tokens), True or 1 for padding, anywhere; no floats.
            document_starts: (batch, seq or new tokens), True or 1 for the first token of each document; a
                document sees nothing of the ones before.
            encoder_out: what ``Encoder`` returns; batch / rows of it neighbouring sequences share a row.

        Returns:
            Logits (batch, new tokens, vocabulary), or features with features_only or without an output
            projection; and inner_states (list); l_aux (list, balance losses, None for a dense layer) and routing
            (list, RoutingReport, None likewise), of the encoder's layers first; attn (None).

        Raises:
            InputError: a mask holds floats.
            ValueError: input is missing.
        """
        state = self._state(incremental_state)
        if not features_only and token_embeddings is None and document_starts is None:
            recorded = self._recorded_step(prev_output_tokens, state, self_attn_padding_mask)
            if recorded is not None:
                return recorded
        past = 0 if state is None else state.length
        embedding = self._embed(prev_output_tokens[:, past:], token_embeddings)
        x = self._add_positions(embedding, prev_output_tokens, past + embedding.size(1))
        memory = self._memory(encoder_out, state)
        memory = None if memory is None else with_padding_bias(memory, x.dtype)
        masks = _masks_of_new_tokens(x.size(1), self_attn_padding_mask, document_starts)
        retention = self._retention_inputs(x, state, *masks)
        not_routed = None if self.config.torchscale_compatible else masks[0]
        return self._decode(
            x, retention, memory, not_routed, state=state, encoder_out=encoder_out, features_only=features_only
        )

    def static_state(self, arena: Arena, sizes: Sizes, state: DecodingState) -> StaticState:
        """A ``StaticRetention`` for states like the one given."""
        assert self.embed_tokens is not None
        return StaticRetention(arena, sizes, state, self.embed_tokens.weight.dtype)

    def static_step(self, static: StaticRetention) -> Tensor:
        """Logits (rows, 1, vocabulary) of the tokens in a static state, which takes them in."""
        x = self._add_positions(self._embed(static.tokens, None), static.tokens, 0)
        retention = self._inputs_of(token_counts(1, static.seen), x, has_state=True)
        memory = None
        if static.memory is not None:
            memory = AttentionInputs(memory=static.memory.content, bias=static.memory.bias)
        logits = self._static_decode(x, retention, memory, layers=static.layers)
        static.seen += 1
        return logits

    def _state(self, incremental_state: dict[Any, Any] | None) -> RetNetState | None:
        if incremental_state is None:
            return None
        return cast(RetNetState, RetNetState.of(incremental_state, len(self.layers)))

    def _retention_inputs(
        self, x: Tensor, state: RetNetState | None, padding_mask: Tensor | None, document_starts: Tensor | None
    ) -> RetentionInputs:
        """Rotations, decays and masks of these tokens for the retention of all layers; the state counts them as seen
        afterwards."""
        seen = torch.zeros(1, dtype=torch.long, device=x.device)
        if state is not None and state.seen is not None:
            seen = state.seen
        masks = {"padding_mask": padding_mask, "document_starts": document_starts}
        counts = token_counts(x.size(1), seen, **masks)
        inputs = self._inputs_of(counts, x, has_state=state is not None, **masks)
        if state is not None:
            state.seen = counts[:, -1]
        return inputs

    def _inputs_of(self, counts: Tensor, x: Tensor, **options: Any) -> RetentionInputs:
        """Inputs for tokens with these counts (``token_counts``); options as for ``RetentionInputs.of``."""
        config, heads = self.config, self.config.decoder_retention_heads
        log_decay = log_decays(heads, config.retention_decay, x.device)
        return RetentionInputs.of(
            x,
            counts,
            log_decay,
            config.decoder_embed_dim // heads,
            inclusive=config.torchscale_compatible,
            backend=config.retention_backend,
            **options,
        )


def _masks_of_new_tokens(
    new_tokens: int, padding_mask: Tensor | None, document_starts: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The last columns of masks, or None where nothing is marked. Waits for the device, unless that is known.

    Raises:
        InputError: a mask holds floats.
    """
    padding_mask = as_mask(padding_mask, "self_attn_padding_mask")
    document_starts = as_mask(document_starts, "document_starts")
    if document_starts is not None and known_documents(document_starts) is not None:
        return padding_mask, document_starts
    return _of_new_tokens(padding_mask, new_tokens), _of_new_tokens(document_starts, new_tokens)


def _of_new_tokens(mask: Tensor | None, new_tokens: int) -> Tensor | None:
    """The last columns of a mask, or None if nothing is marked there."""
    return None if mask is None else marked(mask if mask.size(1) == new_tokens else mask[:, -new_tokens:])


def _take_official_constants(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """TorchScale stores angles and decays; ours are computed from the config, and must be the same."""
    stored = {name: state_dict.pop(f"{prefix}retnet_rel_pos.{name}", None) for name in ("angle", "decay")}
    config = cast(AnyRetNetConfig, module.config)
    if stored["angle"] is not None and not config.torchscale_compatible:
        raise ValueError(
            "these weights are of TorchScale's RetNet, which rotates by other angles; load them into a model with "
            "torchscale_compatible=True, or convert the checkpoint of fairseq with "
            "torchscale-fairseq convert from-torchscale."
        )
    if stored["decay"] is not None:
        ours = log_decays(config.decoder_retention_heads, config.retention_decay)
        if not torch.allclose(stored["decay"].double().cpu(), ours, rtol=0.05, atol=1e-6):
            raise ValueError(
                f"these weights have other decays than retention_decay={config.retention_decay}: choose the other."
            )
