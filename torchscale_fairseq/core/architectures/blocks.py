"""What the layers of encoder and decoder are made of, read off a config."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from ..errors import InputError
from ..initialization import (
    ResidualScaling,
    deepnorm_scaling,
    initialize_bert,
    initialize_layers,
    scale_layers,
    subln_scaling,
)
from ..layers.attention import MultiheadAttention
from ..layers.bit_linear import BitKind
from ..layers.dilated_attention import DilatedAttention
from ..layers.embedding import PositionalEmbedding, SinusoidalPositionalEmbedding, TextEmbedding
from ..layers.experts import Experts
from ..layers.feed_forward import FeedForwardNetwork, GatedLinearUnit
from ..layers.grouped import GroupedLinear
from ..layers.linear import LinearFactory, dense
from ..layers.moe import MixtureOfExperts, RoutingOptions, RoutingReport
from ..layers.multiway import Multiway, single_or_multiway
from ..layers.norm import build_norm
from ..layers.relative_position import RelativePositionBias
from ..layers.residual import Residual
from ..layers.router import CosineRouter, LinearRouter, TorchScaleCosineRouter
from ..ops.masks import is_traced
from ..ops.positions import FIRST_POSITION, PADDING_POSITION, absolute_positions
from ..ops.xpos import XPosTables, xpos_tables
from ..parallel.groups import split_experts

Config = EncoderConfig | DecoderConfig | EncoderDecoderConfig
Side = Literal["encoder", "decoder"]


class ExpertKind(NamedTuple):
    """What kind of feed-forward network an expert is."""

    gated: bool
    norm: str | None
    """Of the activations, if there is one."""


class SideOptions:
    """The options of one side of a config, under names without the side's prefix."""

    def __init__(self, config: Config, side: Side, *, is_encoder_decoder: bool):
        self.config = config
        self.side = side
        self.width: int = getattr(config, f"{side}_embed_dim")
        self.heads: int = getattr(config, f"{side}_attention_heads")
        self.ffn_width: int = getattr(config, f"{side}_ffn_embed_dim")
        self.layers: int = getattr(config, f"{side}_layers")
        self.pre_norm: bool = getattr(config, f"{side}_pre_norm")
        self.moe_freq = config.expert_freq(side)
        self.learned_positions: bool = getattr(config, f"{side}_learned_pos")
        self.max_positions_option = "max_source_positions" if side == "encoder" else "max_target_positions"
        self.max_positions: int = getattr(config, self.max_positions_option)
        self.multiway_ffn = config.multiway and side == "encoder"
        self.multiway_attention = config.multiway and config.torchscale_compatible
        self.multiway_norm = self.multiway_attention and side == "encoder"
        self.scaling = self._scaling(is_encoder_decoder)

    def _scaling(self, is_encoder_decoder: bool) -> ResidualScaling:
        def layers_of(side: Side) -> int:
            exists = is_encoder_decoder or side == self.side
            return int(getattr(self.config, f"{side}_layers")) if exists else 0

        depths = {"encoder_layers": layers_of("encoder"), "decoder_layers": layers_of("decoder")}
        which = 0 if self.side == "encoder" else 1
        if self.config.deepnorm:
            return deepnorm_scaling(**depths, torchscale_compatible=self.config.torchscale_compatible)[which]
        if self.config.uses_subln:
            return subln_scaling(**depths)[which]
        return ResidualScaling()

    def norm(self, width: int | None = None, *, multiway: bool | None = None) -> nn.Module:
        """A norm over ``width``, the side's own by default."""
        return single_or_multiway(
            self.multiway_norm if multiway is None else multiway,
            lambda: build_norm(self.config.norm, width or self.width, self.config.layernorm_eps),
        )

    def sublayer_norm(self) -> nn.Module:
        """The norm of a sublayer without a router; one before it is left to the norms of BitNet's layers."""
        return nn.Identity() if self.bits is not None and self.pre_norm else self.norm()

    @property
    def bits(self) -> BitKind | None:
        """BitNet's quantisation, if the config asks for it."""
        config = self.config
        if config.bitnet is None:
            return None
        return BitKind(config.bitnet, config.bitnet_recipe or "faq", config.layernorm_eps, config.bitnet_packed)

    @property
    def linear(self) -> LinearFactory:
        """What linear layers inside sublayers are."""
        return dense if self.bits is None else self.bits.linear

    @property
    def inner_norms(self) -> bool:
        """Whether SubLN's second norms are there."""
        return self.config.uses_subln and self.bits is None

    def residual(self, depth: int) -> Residual:
        """The residual connection of layer ``depth``, counted from 0."""
        return Residual(
            alpha=self.scaling.alpha,
            pre_norm=self.pre_norm,
            dropout=self.config.dropout,
            drop_path_rate=self.config.drop_path_rate * depth / max(self.layers - 1, 1),
        )

    def self_attention(self) -> MultiheadAttention:
        """Self-attention, dilated if the config asks for it, with SubLN's inner norm where that is on."""
        arguments: dict[str, Any] = {
            "dropout": self.config.attention_dropout,
            "inner_norm": self.norm(multiway=self.multiway_attention) if self.inner_norms else None,
            "backend": self.config.backend,
            "multiway": self.multiway_attention,
            "linear": self.linear,
        }
        config = self.config
        if not (isinstance(config, EncoderConfig | DecoderConfig) and config.segment_lengths):
            return MultiheadAttention(self.width, self.heads, **arguments)
        return DilatedAttention(
            self.width,
            self.heads,
            segment_lengths=config.segment_lengths,
            dilation_ratios=config.dilation_ratios,
            torchscale_compatible=config.torchscale_compatible,
            **arguments,
        )

    def cross_attention(self, memory_dim: int) -> MultiheadAttention:
        """Attention to the encoder's output; SubLN adds nothing to it."""
        return MultiheadAttention(
            self.width,
            self.heads,
            memory_dim=memory_dim,
            dropout=self.config.attention_dropout,
            backend=self.config.backend,
            multiway=self.multiway_attention,
            linear=self.linear,
        )

    def feed_forward(self) -> nn.Module:
        """The feed-forward network."""

        def make() -> nn.Module:
            kind = GatedLinearUnit if self.config.gated_ffn else FeedForwardNetwork
            return kind(
                self.width,
                self.ffn_width,
                activation_fn=self.config.activation_fn,
                activation_dropout=self.config.activation_dropout,
                inner_norm=self.norm(self.ffn_width, multiway=False) if self.inner_norms else None,
                linear=self.linear,
                chunk_size=self.config.ffn_chunk_size,
            )

        return single_or_multiway(self.multiway_ffn, make)

    def has_experts(self, depth: int) -> bool:
        """Whether layer ``depth``, counted from 0, has experts in place of its feed-forward network."""
        return self.moe_freq > 0 and (depth + 1) % self.moe_freq == 0

    @property
    def expert_kind(self) -> ExpertKind:
        """What an expert is: what the other feed-forward networks are."""
        return ExpertKind(self.config.gated_ffn, self.config.norm if self.inner_norms else None)

    def mixture_of_experts(self) -> MixtureOfExperts:
        """The experts of one layer, with their router."""
        config = self.config
        dropout = config.activation_dropout if config.moe_expert_dropout is None else config.moe_expert_dropout
        experts = Experts(
            split_experts(config.moe_expert_count),
            self.width,
            config.moe_expert_ffn_dim or self.ffn_width,
            gated=self.expert_kind.gated,
            activation_fn=config.activation_fn,
            dropout=dropout,
            norm=self.expert_kind.norm,
            eps=config.layernorm_eps,
            norm_weight=1 / config.moe_expert_count if config.moe_clip == "sparse" else 1.0,
            gradient_root=config.moe_normalize_expert_grad == "sqrt_world_size",
            linear=GroupedLinear if self.bits is None else self.bits.grouped_linear,
        )
        router = self._router()
        router.requires_grad_(not config.moe_freeze_routing)
        return MixtureOfExperts(router, experts, self._routing_options())

    def _router(self) -> nn.Module:
        config, experts = self.config, self.config.moe_expert_count
        if not config.use_xmoe:
            return LinearRouter(self.width, experts)
        if config.torchscale_compatible:
            return TorchScaleCosineRouter(self.width, experts)
        return CosineRouter(self.width, experts, config.moe_routing_dim or max(experts // 2, 4))

    def _routing_options(self) -> RoutingOptions:
        config, official = self.config, self.config.torchscale_compatible
        fraction, policy = config.moe_eval_capacity_token_fraction, config.moe_second_expert_policy
        before_dropping = config.moe_normalize_gate_prob_before_dropping
        if official:
            fraction = 0.25 if fraction is None else fraction
            policy = "random" if policy is None or config.use_xmoe else policy
        return RoutingOptions(
            top_k=config.expert_top_k,
            capacity_factor=None if config.moe_dropless else config.moe_capacity_factor,
            eval_capacity_token_fraction=fraction,
            policy=policy or "all",
            normalize_before_dropping=config.use_xmoe if before_dropping is None else before_dropping,
            prioritized=config.moe_batch_prioritized_routing,
            use_fp32=config.moe_gating_use_fp32,
            torchscale_compatible=official,
        )

    def relative_bias(self, *, bidirectional: bool) -> RelativePositionBias | None:
        """T5's bias, if the config asks for it."""
        if not self.config.has_relative_bias:
            return None
        return RelativePositionBias(
            self.heads,
            bidirectional=bidirectional,
            num_buckets=self.config.rel_pos_buckets,
            max_distance=self.config.max_rel_pos,
        )

    def token_embedding(self) -> TextEmbedding | None:
        """A fresh embedding of the vocabulary; TorchScale leaves that to the caller."""
        if self.config.vocab_size < 0 or self.config.torchscale_compatible:
            return None
        return TextEmbedding(self.config.vocab_size, self.width, padding_idx=PADDING_POSITION)

    def position_embedding(self) -> PositionalEmbedding | SinusoidalPositionalEmbedding | None:
        """Learned or sinusoidal positions, if the config has absolute ones."""
        if not self.config.has_absolute_positions:
            return None
        if self.learned_positions:
            return PositionalEmbedding(self.max_positions + FIRST_POSITION, self.width, padding_idx=PADDING_POSITION)
        return SinusoidalPositionalEmbedding(self.max_positions, self.width)

    def default_position_embedding(self) -> PositionalEmbedding | SinusoidalPositionalEmbedding | None:
        """The same for a model built without one; TorchScale leaves that to the caller."""
        if self.config.vocab_size < 0 or self.config.torchscale_compatible:
            return None
        return self.position_embedding()

    def output_projection(self, tied_to: nn.Embedding | None) -> nn.Linear:
        """Projection to the vocabulary, N(0, 1 / width), or the embedding it shares."""
        if tied_to is not None:
            projection = nn.Linear(tied_to.embedding_dim, tied_to.num_embeddings, bias=False)
            projection.weight = tied_to.weight
            return projection
        projection = nn.Linear(self.width, self.config.vocab_size, bias=False)
        nn.init.normal_(projection.weight, std=self.width**-0.5)
        return projection

    def finish(self, model: nn.Module, layers: nn.ModuleList, *, one_region: bool = False) -> None:
        """Initialise one side after it is built, and compile its layers if the config asks for it.

        Args:
            model: the side.
            layers: its layers.
            one_region: compile them together. Layers with experts or dilated attention, which run in part outside of
                compiled code, are compiled one by one anyway.
        """
        self._initialize(model, layers)
        if not self.config.compile:
            return
        apart = self.moe_freq > 0 or any(isinstance(module, DilatedAttention) for module in layers.modules())
        for module in [layers] if one_region and not apart else layers:
            module.compile()

    def _initialize(self, model: nn.Module, layers: nn.Module) -> None:
        config = self.config
        scale_cross_attention = config.deepnorm
        if config.bert_init:
            initialize_bert(model)
        elif not config.torchscale_compatible:
            xavier = "normal" if config.deepnorm or config.uses_subln else "uniform"
            initialize_layers(
                layers, gain=self.scaling.gain, xavier=xavier, scale_cross_attention=scale_cross_attention
            )
            return
        scale_layers(layers, gain=self.scaling.gain, scale_cross_attention=scale_cross_attention)

    def xpos_tables(
        self, positions: Tensor, *, causal: bool, centre: int, span: int, dtype: torch.dtype
    ) -> XPosTables | None:
        """xPos tables for one forward pass, if the config asks for xPos.

        Args:
            positions: (batch or 1, seq), of queries and new keys.
            causal: scores decay; in bidirectional attention they do so in TorchScale's code only.
            centre: position at which nothing is scaled.
            span: tokens between the first of them and the last.
            dtype: of the model.
        """
        if not self.config.xpos_rel_pos:
            return None
        return xpos_tables(
            positions,
            self.width // self.heads,
            decay=causal or self.config.torchscale_compatible,
            scale_base=self.config.xpos_scale_base,
            centre=centre,
            span=span,
            dtype=dtype,
        )


def run_layer(
    layer: nn.Module, x: Tensor, *, recompute: bool, stepping: bool, **arguments: Any
) -> tuple[Tensor, RoutingReport | None]:
    """Call a layer, which returns x and, if it has experts, a report of the routing.

    Args:
        x: (batch, seq, width).
        recompute: make its inner activations again in the backward pass instead of keeping them.
        stepping: the call continues a sequence: it is too small to profit from a compiled layer.
        arguments: the layer's.
    """
    if stepping:
        return layer.forward(x, **arguments)
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, x, use_reentrant=False, **arguments)
    return layer(x, **arguments)


def feed_forward(layer: Any, x: Tensor, not_routed: Tensor | None) -> tuple[Tensor, RoutingReport | None]:
    """The second half of a decoder's layer: its feed-forward network, or its experts with what they report.

    Args:
        layer: has residual, final_layer_norm, and ffn or moe_layer.
        x: (batch, seq, width).
        not_routed: (batch, seq), True for tokens that go to no expert.
    """
    if layer.moe_layer is None:
        return layer.residual(x, layer.final_layer_norm, layer.ffn), None
    result: tuple[Tensor, RoutingReport] = layer.residual.with_report(
        x, layer.final_layer_norm, lambda y: layer.moe_layer(y, not_routed)
    )
    return result


def routing_outputs(
    reports: list[RoutingReport | None], encoder_out: dict[str, Any] | None = None
) -> dict[str, list[Any]]:
    """``l_aux``, TorchScale's name for the balance losses, and ``routing``, one entry per layer.

    Args:
        reports: of the layers of one side.
        encoder_out: what the other side returned; its entries come first.
    """
    before = encoder_out or {}
    return {
        "l_aux": [*before.get("l_aux", ()), *(None if r is None else r.balance_loss for r in reports)],
        "routing": [*before.get("routing", ()), *reports],
    }


def position_rows(positions: Tensor | None, padding_mask: Tensor | None, *, start: int, x: Tensor) -> Tensor:
    """Rows of the position table for the tokens of x, (batch, seq, width): given, counted from the padding mask
    of exactly these tokens and those before, or consecutive from token ``start`` on."""
    if positions is not None:
        return positions
    if padding_mask is not None:
        return absolute_positions(padding_mask)[:, -x.size(1) :]
    first = FIRST_POSITION + start
    return torch.arange(first, first + x.size(1), device=x.device)[None]


def check_length(options: SideOptions, embed_positions: nn.Module, rows: Tensor, total: int) -> None:
    """Raise InputError if rows run past the table of absolute positions.

    Two tables are checked by their maker. A traced model is not checked; the table itself refuses rows that it lacks.

    Args:
        options: the side's.
        embed_positions: the table.
        rows: (batch or 1, seq).
        total: the tokens of a sequence, padding included. Rows, which may lie on a device, are looked at only where so
            many do not fit.
    """
    if isinstance(embed_positions, Multiway) or is_traced():
        return
    limit = getattr(embed_positions, "max_positions", options.max_positions)
    if total <= limit:
        return
    length = int(rows.max()) - FIRST_POSITION + 1
    if length > limit:
        name = options.max_positions_option
        raise InputError(
            f"a sequence of {length} tokens is longer than {name} ({limit}); raise {name}, shorten the input, "
            "or use positions without a limit (xpos_rel_pos, or rel_pos_buckets with max_rel_pos)."
        )
