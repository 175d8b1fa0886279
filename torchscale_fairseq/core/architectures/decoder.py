"""The causal decoder: a language model, or the target side of a translation model."""

from typing import Any

import torch
from torch import Tensor, nn

from ..config import DecoderConfig, EncoderDecoderConfig
from ..layers.cache import DecodingState, LayerState, reorder_incremental_state
from ..layers.moe import RoutingReport
from ..ops.masks import as_mask, marked
from ..ops.positions import has_padding_before_tokens, has_padding_inside, relative_positions
from ..ops.xpos import XPosTables
from ..parallel.sequence import SequenceSlice
from .blocks import SideOptions, feed_forward, position_rows, routing_outputs
from .layer_sequence import LayerSequence
from .stack import Stack


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder where there is one, and feed-forward network."""

    def __init__(self, options: SideOptions, depth: int, memory_dim: int | None):
        super().__init__()
        self.self_attn = options.self_attention()
        self.self_attn_layer_norm = options.sublayer_norm()
        self.encoder_attn = None if memory_dim is None else options.cross_attention(memory_dim)
        self.encoder_attn_layer_norm = None if memory_dim is None else options.sublayer_norm()
        with_experts = options.has_experts(depth)
        self.moe_layer = options.mixture_of_experts() if with_experts else None
        self.ffn = None if with_experts else options.feed_forward()
        self.final_layer_norm = options.norm() if with_experts else options.sublayer_norm()
        self.residual = options.residual(depth)

    def forward(
        self,
        x: Tensor,
        *,
        block: int,
        padding_mask: Tensor | None,
        bias: Tensor | None,
        xpos: XPosTables | None,
        memory: Tensor | None,
        memory_padding_mask: Tensor | None,
        memory_bias: Tensor | None,
        state: LayerState | None,
        sequence: SequenceSlice | None,
        not_routed: Tensor | None,
    ) -> tuple[Tensor, RoutingReport | None]:
        """(batch, seq, width) to the same; arguments as for MultiheadAttention and MixtureOfExperts."""
        x = self.residual(
            x,
            self.self_attn_layer_norm,
            lambda y: self.self_attn(
                y,
                causal=True,
                block=block,
                key_padding_mask=padding_mask,
                bias=bias,
                xpos=xpos,
                cache=None if state is None else state.self_attn,
                sequence=sequence,
            ),
        )
        if self.encoder_attn is not None and memory is not None:
            x = self.residual(
                x,
                self.encoder_attn_layer_norm,
                lambda y: self.encoder_attn(
                    y,
                    memory,
                    key_padding_mask=memory_padding_mask,
                    bias=memory_bias,
                    cache=None if state is None else state.encoder_attn,
                ),
            )
        return feed_forward(self, x, not_routed)


class Decoder(Stack):
    """A stack of decoder layers between embeddings and, unless told otherwise, a projection to the vocabulary.

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
        super().__init__(config, "decoder", embed_tokens, embed_positions, is_encoder_decoder=is_encoder_decoder)
        options = self.options
        memory_dim = None
        if is_encoder_decoder and isinstance(config, EncoderDecoderConfig):
            memory_dim = config.encoder_embed_dim
        self.layers = LayerSequence(DecoderLayer(options, depth, memory_dim) for depth in range(options.layers))
        self.layer_norm = options.norm() if options.pre_norm else None
        # T5 has causal buckets here and no bias to the encoder; TorchScale has bidirectional ones and a bias.
        official = config.torchscale_compatible
        self.self_attn_relative_position = options.relative_bias(bidirectional=official)
        self.cross_attn_relative_position = (
            options.relative_bias(bidirectional=True) if official and is_encoder_decoder else None
        )
        self.output_projection = output_projection
        if output_projection is None and not config.no_output_layer and config.vocab_size > 0:
            shared = config.shares_output_embedding
            tied = self._tied_embedding("share_decoder_input_output_embed", shared=shared)
            self.output_projection = options.output_projection(tied)
        options.finish(self, self.layers, one_region=memory_dim is None)

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

        Returns:
            Logits (batch, new tokens, vocabulary), or features with features_only or without an output
            projection; and inner_states (list); l_aux (list, balance losses, None for a dense layer) and routing
            (list, RoutingReport, None likewise), of the encoder's layers first; attn (None).

        Raises:
            InputError: a padding mask holds floats, or the input is longer than max_target_positions.
            ValueError: input is missing, or a slice is to be decoded step by step.
        """
        if sequence_slice is not None and incremental_state is not None:
            raise ValueError("incremental_state has no place with sequence_slice; decode in one process.")
        self_attn_padding_mask = as_mask(self_attn_padding_mask, "self_attn_padding_mask")
        state = self._state(incremental_state)
        past = 0 if state is None else state.length
        embedding = self._embed(prev_output_tokens[:, past:], token_embeddings)
        total = past + embedding.size(1)
        if sequence_slice is None:
            padding_mask, rows = self._padding_mask(self_attn_padding_mask, state, embedding.size(1)), None
            relative = _relative_positions(padding_mask, total, embedding.device)
        else:
            sequence_slice, total = sequence_slice.to(embedding.device), sequence_slice.total
            padding_mask, rows = sequence_slice.padding_mask(), sequence_slice.position_rows(embedding.device)
            relative = sequence_slice.positions(embedding.device)
        x = self._add_positions(embedding, position_rows(rows, padding_mask, start=past, x=embedding), total)
        memory, memory_padding_mask = encoder_memory(encoder_out, state)

        not_routed = None
        if padding_mask is not None and not self.config.torchscale_compatible:
            not_routed = padding_mask[:, past:]
        if padding_mask is not None and state is None and not has_padding_before_tokens(padding_mask):
            padding_mask = None  # causal attention does not look to the right
        centre = total // 2 if state is None else state.xpos_centre_for(total, self.config.xpos_scale_base)
        xpos = self.options.xpos_tables(
            relative[:, past:], causal=True, centre=centre, span=total - past, dtype=x.dtype
        )
        shared: dict[str, Any] = {
            "block": 0 if self.training else self.config.blockwise_causal_window // 2,
            "padding_mask": padding_mask,
            "bias": self._self_bias(relative, past),
            "xpos": xpos,
            "memory": memory,
            "memory_padding_mask": memory_padding_mask,
            "memory_bias": self._memory_bias(memory, past, total),
            "sequence": sequence_slice,
            "not_routed": not_routed,
        }
        layer_states = [None] * len(self.layers) if state is None else state.layers
        shared.update(recompute=self.config.checkpoint_activations, stepping=state is not None)
        run = self.layers if state is None else self.layers.forward  # a step is too small to profit from compiled code
        inner_states, reports = run(x, layer_states, **shared)
        x = inner_states[-1]
        if state is not None:
            state.length = total
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        if not features_only:
            x = self.output_layer(x)
        return x, {"inner_states": inner_states, **routing_outputs(reports, encoder_out), "attn": None}

    def output_layer(self, features: Tensor) -> Tensor:
        """Features (..., width) to logits, if there is an output projection."""
        return features if self.output_projection is None else self.output_projection(features)

    def reorder_incremental_state(self, incremental_state: dict[Any, Any], new_order: Tensor) -> None:
        """Make the state follow its sequences, as beam search moves, drops and repeats them.

        Args:
            incremental_state: the caller's dictionary.
            new_order: (new batch,), rows to keep.
        """
        reorder_incremental_state(incremental_state, new_order)

    def _state(self, incremental_state: dict[Any, Any] | None) -> DecodingState | None:
        if incremental_state is None:
            return None
        first: Any = self.layers[0]
        return DecodingState.of(incremental_state, len(self.layers), first.self_attn.new_cache)

    def _embed(self, new_tokens: Tensor, token_embeddings: Tensor | None) -> Tensor:
        if new_tokens.size(1) == 0:
            raise ValueError("prev_output_tokens has no token that incremental_state has not seen.")
        if token_embeddings is not None:
            return self.embed_scale * token_embeddings[:, -new_tokens.size(1) :]
        return self.embed_scale * self._embed_tokens(new_tokens)

    def _padding_mask(self, given: Tensor | None, state: DecodingState | None, new_tokens: int) -> Tensor | None:
        if state is not None:
            return state.extend_padding_mask(given, new_tokens)
        return marked(given)

    def _self_bias(self, relative: Tensor, past: int) -> Tensor | None:
        if self.self_attn_relative_position is None:
            return None
        return self.self_attn_relative_position(relative[:, past:], relative)

    def _memory_bias(self, memory: Tensor | None, past: int, total: int) -> Tensor | None:
        if self.cross_attn_relative_position is None or memory is None:
            return None
        queries = torch.arange(past, total, device=memory.device)[None]
        keys = torch.arange(memory.size(1), device=memory.device)[None]
        return self.cross_attn_relative_position(queries, keys)


def _relative_positions(padding_mask: Tensor | None, total: int, device: torch.device) -> Tensor:
    if padding_mask is not None and has_padding_inside(padding_mask):
        return relative_positions(padding_mask)
    return torch.arange(total, device=device)[None]


def encoder_memory(
    encoder_out: dict[str, Any] | None, state: DecodingState | None
) -> tuple[Tensor | None, Tensor | None]:
    """The encoder's output and its padding, which a state keeps from its first step."""
    if encoder_out is None:
        return None, None
    memory: Tensor = encoder_out["encoder_out"]
    if state is not None and state.length > 0:
        return memory, state.memory_padding_mask
    padding_mask = marked(as_mask(encoder_out.get("encoder_padding_mask"), "encoder_padding_mask"))
    if state is not None:
        state.memory_padding_mask = padding_mask
    return memory, padding_mask
