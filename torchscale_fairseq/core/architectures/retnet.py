"""RetNet: a decoder with retention in the place of self-attention.

"Retentive Network: A Successor to Transformer for Large Language Models", arXiv:2307.08621.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ..config import RetNetConfig, RetNetEncoderDecoderConfig
from ..initialization import initialize_retnet
from ..layers.cache import DecodingState, LayerState, reorder_incremental_state
from ..layers.moe import RoutingReport
from ..layers.retention import MultiScaleRetention, RetentionState
from ..ops.masks import as_mask, marked
from ..ops.retention_tables import RetentionTables, log_decays, retention_tables, token_counts
from .blocks import Config, ExpertKind, SideOptions, feed_forward, routing_outputs, run_layer
from .decoder import encoder_memory
from .stack import Stack

AnyRetNetConfig = RetNetConfig | RetNetEncoderDecoderConfig


class RetNetOptions(SideOptions):
    """The options of a RetNet decoder, and what its layers are made of."""

    def __init__(self, config: AnyRetNetConfig, *, is_encoder_decoder: bool):
        super().__init__(cast(Config, config), "decoder", is_encoder_decoder=is_encoder_decoder)
        self.retnet = config

    def retention(self) -> MultiScaleRetention:
        """Multi-scale retention."""
        return MultiScaleRetention(
            self.width,
            self.retnet.decoder_value_embed_dim,
            self.retnet.decoder_retention_heads,
            norm_eps=self.retnet.layernorm_eps,
            clamp_scores=self.retnet.torchscale_compatible,
            chunkwise=self.retnet.chunkwise_recurrent,
            chunk_size=self.retnet.recurrent_chunk_size,
            backend=self.retnet.retention_backend,
            linear=self.linear,
        )

    @property
    def expert_kind(self) -> ExpertKind:
        """TorchScale's experts are plain, whatever the other feed-forward networks are."""
        if self.retnet.torchscale_compatible:
            return ExpertKind(gated=False, norm="layernorm")
        return super().expert_kind

    def tables(self, counts: Tensor, log_decay: Tensor, dtype: torch.dtype) -> RetentionTables:
        """Positions and scales for one forward pass."""
        key_dim = self.width // self.retnet.decoder_retention_heads
        return retention_tables(counts, log_decay, key_dim, dtype=dtype, inclusive=self.retnet.torchscale_compatible)

    def _initialize(self, model: nn.Module, layers: nn.Module) -> None:
        initialize_retnet(layers, gain=self.scaling.gain, torchscale_compatible=self.retnet.torchscale_compatible)


class RetNetLayer(nn.Module):
    """Retention, attention to the encoder where there is one, and feed-forward network."""

    def __init__(self, options: RetNetOptions, depth: int, memory_dim: int | None):
        super().__init__()
        self.retention = options.retention()
        self.retention_layer_norm = options.sublayer_norm()
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
        retention: dict[str, Any],
        memory: Tensor | None,
        memory_padding_mask: Tensor | None,
        state: RetNetLayerState | None,
        not_routed: Tensor | None,
    ) -> tuple[Tensor, RoutingReport | None]:
        """(batch, seq, width) to the same, and what there is to report of experts.

        Args:
            retention: what ``MultiScaleRetention`` takes.
            memory, memory_padding_mask: as for MultiheadAttention.
            state: of earlier tokens.
            not_routed: as MixtureOfExperts' padding mask.
        """
        kept, keys = (None, None) if state is None else (state.self_attn, state.encoder_attn)
        x = self.residual(x, self.retention_layer_norm, lambda y: self.retention(y, state=kept, **retention))
        if self.encoder_attn is not None and memory is not None:
            x = self.residual(
                x,
                self.encoder_attn_layer_norm,
                lambda y: self.encoder_attn(y, memory, key_padding_mask=memory_padding_mask, cache=keys),
            )
        return feed_forward(self, x, not_routed)


class RetNetLayerState(LayerState):
    """What one layer remembers."""

    def __init__(self) -> None:
        super().__init__(RetentionState())


class RetNetState(DecodingState):
    """All that a RetNet remembers of a batch of sequences, in memory that does not grow with them."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(0)
        self.layers = [RetNetLayerState() for _ in range(num_layers)]
        self.seen: Tensor | None = None
        """(batch,), long: tokens of each sequence so far, padding aside; (1,) while all have the same."""

    def reorder(self, rows: Tensor) -> None:
        """Keep the given rows, in the given order."""
        super().reorder(rows)
        if self.seen is not None and self.seen.size(0) > 1:
            self.seen = self.seen.index_select(0, rows)


class RetNetDecoder(Stack):
    """A stack of retention layers between an embedding and, unless told otherwise, a projection to the vocabulary.

    Without an encoder its memory while decoding is of constant size.

    Args:
        config: the options.
        embed_tokens: token embedding; by default one is built if the config has a vocabulary (not under
            torchscale_compatible).
        output_projection: module from features to logits; by default built if the config has a vocabulary.
        is_encoder_decoder: layers also attend to an encoder's output.
    """

    config: AnyRetNetConfig  # type: ignore[assignment]
    options: RetNetOptions

    def __init__(
        self,
        config: AnyRetNetConfig,
        embed_tokens: nn.Embedding | None = None,
        output_projection: nn.Module | None = None,
        is_encoder_decoder: bool = False,
    ):
        super().__init__(cast(Config, config), "decoder", embed_tokens, None, is_encoder_decoder=is_encoder_decoder)
        self.embed_positions = None  # retention has positions of its own
        options = self.options = RetNetOptions(config, is_encoder_decoder=is_encoder_decoder)
        memory_dim = None
        if is_encoder_decoder and isinstance(config, RetNetEncoderDecoderConfig):
            memory_dim = config.encoder_embed_dim
        self.layers = nn.ModuleList(RetNetLayer(options, depth, memory_dim) for depth in range(options.layers))
        self.layer_norm = options.norm() if options.pre_norm else None
        self.output_projection = output_projection
        if output_projection is None and not config.no_output_layer and config.vocab_size > 0:
            shared = config.shares_output_embedding
            tied = self._tied_embedding("share_decoder_input_output_embed", shared=shared)
            self.output_projection = options.output_projection(tied)
        options.finish(self, self.layers)
        self.register_load_state_dict_pre_hook(_take_official_constants)  # type: ignore[no-untyped-call]

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
        past = 0 if state is None else state.length
        embedding = self._embed(prev_output_tokens[:, past:], token_embeddings)
        x = self._add_positions(embedding, prev_output_tokens, past + embedding.size(1))
        memory, memory_padding_mask = encoder_memory(encoder_out, state)
        retention = self._retention_arguments(x, state, self_attn_padding_mask, document_starts)
        shared = {
            "retention": retention,
            "memory": memory,
            "memory_padding_mask": memory_padding_mask,
            "not_routed": None if self.config.torchscale_compatible else retention["padding_mask"],
        }
        layer_states = [None] * len(self.layers) if state is None else state.layers
        inner_states = [x]
        reports = []
        for layer, layer_state in zip(self.layers, layer_states, strict=True):
            x, report = run_layer(
                layer,
                x,
                recompute=self.config.checkpoint_activations,
                stepping=state is not None,
                state=layer_state,
                **shared,
            )
            inner_states.append(x)
            reports.append(report)
        if state is not None:
            state.length = past + x.size(1)
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

    def _state(self, incremental_state: dict[Any, Any] | None) -> RetNetState | None:
        if incremental_state is None:
            return None
        return cast(RetNetState, RetNetState.of(incremental_state, len(self.layers)))

    def _embed(self, new_tokens: Tensor, token_embeddings: Tensor | None) -> Tensor:
        if new_tokens.size(1) == 0:
            raise ValueError("prev_output_tokens has no token that incremental_state has not seen.")
        if token_embeddings is not None:
            return self.embed_scale * token_embeddings[:, -new_tokens.size(1) :]
        return self.embed_scale * self._embed_tokens(new_tokens)

    def _retention_arguments(
        self, x: Tensor, state: RetNetState | None, padding_mask: Tensor | None, document_starts: Tensor | None
    ) -> dict[str, Any]:
        """What all layers' retention shares for these tokens, which the state then counts among those it has seen."""
        masks = {
            "padding_mask": _of_new_tokens(as_mask(padding_mask, "self_attn_padding_mask"), x.size(1)),
            "document_starts": _of_new_tokens(as_mask(document_starts, "document_starts"), x.size(1)),
        }
        seen = torch.zeros(1, dtype=torch.long, device=x.device)
        if state is not None and state.seen is not None:
            seen = state.seen
        counts = token_counts(x.size(1), seen, **masks)
        if state is not None:
            state.seen = counts[:, -1]
        log_decay = log_decays(self.config.decoder_retention_heads, self.config.retention_decay, x.device)
        return {**masks, "log_decay": log_decay, "tables": self.options.tables(counts, log_decay, x.dtype)}


def _of_new_tokens(mask: Tensor | None, new_tokens: int) -> Tensor | None:
    """The last columns of a mask, or None if nothing is marked there."""
    return None if mask is None else marked(mask[:, -new_tokens:])


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
