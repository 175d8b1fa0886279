"""The causal decoder: a language model, or the target side of a translation model."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import DecoderConfig, EncoderDecoderConfig
from ..layers.attention_inputs import AttentionInputs
from ..layers.cache import NO_STATE, DecodingState, LayerState
from ..layers.moe import RoutingReport
from ..layers.static_state import Arena, Sizes, StaticKeyValues, StaticState
from ..ops.documents import Documents
from ..ops.masks import as_mask, marked
from ..ops.packed_attention import with_row_bias
from ..ops.padding_bias import with_padding_bias
from ..ops.positions import FIRST_POSITION, has_padding_before_tokens
from ..parallel.sequence import SequenceSlice
from .causal import CausalStack
from .factory import LayerFactory
from .layer import Layer
from .positions import TokenPositions, packed_positions, position_rows, positions_in_scores, xpos_for
from .spec import decoder_spec


class DecoderLayer(Layer):
    """Causal self-attention, attention to the encoder where there is one, and feed-forward network."""

    def __init__(self, factory: LayerFactory, depth: int):
        super().__init__()
        self.self_attn = factory.self_attention()
        self.self_attn_layer_norm = factory.sublayer_norm()
        self._build_cross_attention(factory)
        self._build_second_half(factory, depth)

    def forward(
        self,
        x: Tensor,
        attention: AttentionInputs,
        memory: AttentionInputs | None = None,
        not_routed: Tensor | None = None,
        state: LayerState = NO_STATE,
    ) -> tuple[Tensor, RoutingReport | None]:
        """(batch, seq, width) to the same, and a report if the layer has experts.

        Args:
            x: (batch, seq, width).
            attention: inputs of self-attention.
            memory: inputs of attention to the encoder's output, if there is one.
            not_routed: (batch, seq), True for tokens that go to no expert.
            state: of earlier tokens.
        """
        x = self.residual(x, self.self_attn_layer_norm, self.self_attn, attention, state.self_attn)
        if self.encoder_attn is not None and memory is not None:
            x = self.residual(x, self.encoder_attn_layer_norm, self.encoder_attn, memory, state.encoder_attn)
        return self.feed_forward(x, not_routed)


class Decoder(CausalStack):
    """A stack of decoder layers between embeddings and, by default, a projection to the vocabulary.

    Args:
        config: the options.
        embed_tokens, embed_positions: as for ``Stack``.
        output_projection: module from features to logits; by default built if the config has a vocabulary.
        is_encoder_decoder: layers also attend to an encoder's output.
    """

    config: DecoderConfig | EncoderDecoderConfig

    def __init__(
        self,
        config: DecoderConfig | EncoderDecoderConfig,
        embed_tokens: nn.Embedding | None = None,
        embed_positions: nn.Module | None = None,
        output_projection: nn.Module | None = None,
        is_encoder_decoder: bool = False,
    ):
        spec = decoder_spec(config, is_encoder_decoder=is_encoder_decoder)
        super().__init__(config, spec, embed_tokens, embed_positions)
        # T5 has causal buckets here and no bias to the encoder; TorchScale has bidirectional ones and a bias.
        official = config.torchscale_compatible
        self.self_attn_relative_position = self.factory.relative_bias(bidirectional=official)
        self.cross_attn_relative_position = (
            self.factory.relative_bias(bidirectional=True) if official and is_encoder_decoder else None
        )
        has_memory = spec.memory_width is not None
        self._finish_decoder(output_projection, one_region=not has_memory, uneven=has_memory)

    def build_layer(self, factory: LayerFactory, depth: int) -> Layer:
        """A ``DecoderLayer``."""
        return DecoderLayer(factory, depth)

    def forward(
        self,
        prev_output_tokens: Tensor,
        self_attn_padding_mask: Tensor | None = None,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: dict[Any, Any] | None = None,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
        sequence_slice: SequenceSlice | None = None,
        document_starts: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Decode a batch: all positions at once, or those that the state has not seen.

        Args:
            prev_output_tokens: (batch, seq), the whole sequence so far, also with incremental_state.
            self_attn_padding_mask: (batch, seq), True or 1 for padding, left or right; no floats.
            encoder_out: what ``Encoder`` returns; batch / rows of it neighbouring sequences share a row.
            incremental_state: a dict of the caller's, empty at first. What it has seen is not computed again:
                the first call may bring a prompt of any length, later ones any number of new tokens.
            features_only: skip the output projection.
            return_all_hiddens: accepted as by TorchScale, which always fills inner_states too.
            token_embeddings: (batch, seq or new tokens, width), in place of embed_tokens.
            sequence_slice: the tokens are this process's slice of longer rows, which it knows the padding of; needs
                dilated attention.
            document_starts: (batch, seq), True or 1 for the first token of each document. Documents do not see each
                other, and positions begin anew in each; padding ends one. With encoder_out, the encoder was given
                document_starts too, and each document sees the source document of its number.

        Returns:
            Logits (batch, new tokens, vocabulary), or features with features_only or without an output
            projection; and inner_states (list); l_aux (list, balance losses, None for a dense layer) and routing
            (list, RoutingReport, None likewise), of the encoder's layers first; attn (None).

        Raises:
            InputError: a padding mask holds floats, or the input is longer than max_target_positions.
            ValueError: input is missing; or a slice or packed documents are to be decoded step by step.
        """
        if sequence_slice is not None and incremental_state is not None:
            raise ValueError("incremental_state has no place with sequence_slice; decode in one process.")
        if document_starts is not None and incremental_state is not None:
            raise ValueError("document_starts has no place with incremental_state; decode each document by itself.")
        self_attn_padding_mask = as_mask(self_attn_padding_mask, "self_attn_padding_mask")
        state = self._state(incremental_state)
        if not features_only and token_embeddings is None:
            recorded = self._recorded_step(prev_output_tokens, state, self_attn_padding_mask)
            if recorded is not None:
                return recorded
        past = 0 if state is None else state.length
        embedding = self._embed(prev_output_tokens[:, past:], token_embeddings)
        if sequence_slice is not None:
            sequence_slice = sequence_slice.to(embedding.device)
            tokens = TokenPositions.of_slice(sequence_slice, embedding.device)
        elif document_starts is not None:
            tokens = packed_positions(document_starts, self_attn_padding_mask)
        else:
            tokens = self._positions(self_attn_padding_mask, state, past, embedding)
        rows = position_rows(tokens.rows, tokens.padding_mask, start=past, x=embedding)
        x = self._add_positions(embedding, rows, tokens.total)
        attention = self._attention_inputs(tokens, past, state, sequence_slice, x.dtype)
        memory = self._memory_with_bias(encoder_out, past, state, tokens)
        not_routed = None
        if tokens.padding_mask is not None and not self.config.torchscale_compatible:
            not_routed = tokens.padding_mask[:, past:]
        return self._decode(
            x, attention, memory, not_routed, state=state, encoder_out=encoder_out, features_only=features_only
        )

    def static_state(self, arena: Arena, sizes: Sizes, state: DecodingState) -> StaticState:
        """A ``StaticKeyValues`` for states like the one given."""
        assert self.embed_tokens is not None
        dtype = self.embed_tokens.weight.dtype
        return StaticKeyValues(arena, sizes, state, dtype, xpos_scale_base=self._xpos_scale_base)

    def static_step(self, static: StaticKeyValues) -> Tensor:
        """Logits (rows, 1, vocabulary) of the tokens in a static state, which takes them in."""
        position = static.position[None]
        x = self._add_positions(self._embed(static.tokens, None), FIRST_POSITION + position, 0)
        xpos = xpos_for(self.spec, position, causal=True, centre=static.xpos_centre, span=1, dtype=x.dtype)
        attention = AttentionInputs(causal=True, bias=self._static_bias(static, x.dtype), xpos=xpos)
        memory = None
        if static.memory is not None:
            memory = AttentionInputs(memory=static.memory.content, bias=static.memory.bias)
        return self._static_decode(x, attention, memory, layers=static.layers)

    def _static_bias(self, static: StaticKeyValues, dtype: torch.dtype) -> Tensor:
        """Bias of the scores, (1, heads or 1, 1, room), that hides everything that no token sees."""
        position = static.position[None]
        keys = torch.arange(static.sizes.tokens, device=position.device)[None]
        visible, block = keys <= position, self.config.blockwise_causal_window // 2
        if block:
            visible = visible & (position // block - keys // block <= 1)
        relative = self.self_attn_relative_position
        bias = torch.zeros(1, 1, 1, keys.numel(), device=keys.device) if relative is None else relative(position, keys)
        return bias.to(dtype).masked_fill(~visible[:, None, None], -math.inf)

    @property
    def _xpos_scale_base(self) -> int | None:
        return self.config.xpos_scale_base if self.config.xpos_rel_pos else None

    def _state(self, incremental_state: dict[Any, Any] | None) -> DecodingState | None:
        if incremental_state is None:
            return None
        first: Any = self.layers[0]
        return DecodingState.of(incremental_state, len(self.layers), first.self_attn.new_cache)

    def _positions(
        self, padding_mask: Tensor | None, state: DecodingState | None, past: int, embedding: Tensor
    ) -> TokenPositions:
        new, total = embedding.size(1), past + embedding.size(1)
        mask = marked(padding_mask) if state is None else state.extend_padding_mask(padding_mask, new)
        return TokenPositions(mask, None, positions_in_scores(mask, total, embedding.device), total)

    def _attention_inputs(
        self,
        tokens: TokenPositions,
        past: int,
        state: DecodingState | None,
        sequence_slice: SequenceSlice | None,
        dtype: torch.dtype,
    ) -> AttentionInputs:
        padding_mask, new, total = tokens.padding_mask, tokens.in_scores[:, past:], tokens.total
        if tokens.documents is not None:
            padding_mask = None  # a document holds no padding
        elif padding_mask is not None and state is None and not has_padding_before_tokens(padding_mask):
            padding_mask = None  # causal attention does not look to the right
        base = self._xpos_scale_base
        centre = total // 2 if state is None or base is None else state.xpos_centre_for(total, base)
        inputs = AttentionInputs(
            causal=True,
            block=0 if self.training else self.config.blockwise_causal_window // 2,
            key_padding_mask=padding_mask,
            bias=tokens.bias(self.self_attn_relative_position, new.size(1)),
            documents=tokens.documents,
            xpos=xpos_for(self.spec, new, causal=True, centre=centre, span=total - past, dtype=dtype),
            sequence_slice=sequence_slice,
        )
        return with_row_bias(inputs, dtype)

    def _memory_with_bias(
        self, encoder_out: dict[str, Any] | None, past: int, state: DecodingState | None, tokens: TokenPositions
    ) -> AttentionInputs | None:
        inputs = self._memory(encoder_out, state)
        if inputs is not None and encoder_out is not None and tokens.documents is not None:
            inputs = _of_own_documents(inputs, tokens.documents, encoder_out.get("documents"))
        if inputs is None or inputs.memory is None:
            return inputs
        if self.cross_attn_relative_position is None:
            return with_padding_bias(inputs, inputs.memory.dtype)
        queries = torch.arange(past, tokens.total, device=inputs.memory.device)[None]
        keys = torch.arange(inputs.memory.size(1), device=inputs.memory.device)[None]
        return replace(inputs, bias=self.cross_attn_relative_position(queries, keys))


def _of_own_documents(memory: AttentionInputs, documents: Documents, sources: Documents | None) -> AttentionInputs:
    """Attention of each document to the source document of its number."""
    found = 0 if sources is None else len(sources.lengths)
    if found != len(documents.lengths):
        raise ValueError(
            f"document_starts marks {len(documents.lengths)} documents, and the encoder's marks {found}; give both "
            "sides as many, without padding."
        )
    return replace(memory, documents=documents, key_documents=sources, key_padding_mask=None)
