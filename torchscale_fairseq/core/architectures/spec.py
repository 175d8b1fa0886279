"""Specifications of layers: one side of a config, resolved once, with every open option decided.

A ``LayerFactory`` builds the layers from a ``LayerSpec`` and reads no config. One function per kind of side makes the
spec: ``encoder_spec``, ``decoder_spec`` and ``retnet_spec``.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..config import (
    DecoderConfig,
    DilatedOptions,
    EncoderConfig,
    EncoderDecoderConfig,
    RetNetConfig,
    RetNetEncoderDecoderConfig,
)
from ..initialization import ResidualScaling, deepnorm_scaling, subln_scaling
from ..layers.bit_linear import BitKind
from ..layers.moe import RoutingOptions

Side = Literal["encoder", "decoder"]
Scheme = Literal["deepnorm", "subln", "plain"]
Initialization = Literal["xavier", "bert", "retnet", "torch"]
Router = Literal["linear", "cosine", "torchscale_cosine"]
TransformerConfig = EncoderConfig | DecoderConfig | EncoderDecoderConfig
AnyRetNetConfig = RetNetConfig | RetNetEncoderDecoderConfig
AnyConfig = TransformerConfig | RetNetConfig


class AttentionSpec(NamedTuple):
    """Self-attention, and attention to an encoder's output."""

    heads: int
    dropout: float
    backend: str
    segment_lengths: tuple[int, ...]
    """Segment lengths and ratios of dilated attention, one entry per branch; empty for dense attention."""
    dilation_ratios: tuple[int, ...]


class RetentionSpec(NamedTuple):
    """Multi-scale retention."""

    heads: int
    value_width: int
    chunkwise: bool
    chunk_size: int
    backend: str


class FeedForwardSpec(NamedTuple):
    """Feed-forward networks."""

    width: int
    activation: str
    dropout: float
    gated: bool
    chunk_size: int


@dataclass(frozen=True, kw_only=True)
class ExpertSpec:
    """Mixtures of experts."""

    every: int
    """Layers from one mixture to the next."""
    count: int
    width: int
    gated: bool
    norm: str | None
    """Kind of the norm after the activation, if there is one."""
    dropout: float
    router: Router
    routing_width: int
    frozen_router: bool
    routing: RoutingOptions
    time_first: bool
    """Tokens queue for experts time step by time step instead of sequence by sequence."""
    norm_weight: float
    """Weight of the experts' gradients in the norm for clipping."""
    gradient_root: bool
    """Their gradients are divided by the square root of the number of processes."""


class PositionSpec(NamedTuple):
    """Positions in embeddings (absolute) and in scores (relative bias, xPos)."""

    absolute: bool
    learned: bool
    longest: int
    """Tokens."""
    option: str
    """Sets ``longest``."""
    buckets: int
    """Buckets of the relative bias; 0 for none."""
    max_distance: int
    xpos: bool
    xpos_scale_base: int


class MultiwaySpec(NamedTuple):
    """Which modules are doubled for two modalities."""

    feed_forward: bool = False
    attention: bool = False
    norms: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """All that the layers of one side are made of."""

    side: Side
    width: int
    layers: int
    memory_width: int | None
    """Width of the encoder's output that a decoder attends to; None without an encoder."""
    attention: AttentionSpec | None
    retention: RetentionSpec | None
    feed_forward: FeedForwardSpec
    experts: ExpertSpec | None
    positions: PositionSpec | None
    multiway: MultiwaySpec
    norm: str
    norm_eps: float
    pre_norm: bool
    """Norms stand before the sublayers."""
    inner_norms: bool
    """Each sublayer has SubLN's second norm."""
    last_norm: bool
    """A norm follows the last layer."""
    scheme: Scheme
    scaling: ResidualScaling
    initialization: Initialization
    dropout: float
    drop_path_rate: float
    """Drop-path rate of the last layer; it falls linearly towards the first."""
    bits: BitKind | None
    """Settings of BitNet's linear layers; None for dense ones."""
    torchscale_compatible: bool


def encoder_spec(config: EncoderConfig | EncoderDecoderConfig, *, is_encoder_decoder: bool = False) -> LayerSpec:
    """The encoder of a config.

    Args:
        config: the options.
        is_encoder_decoder: a decoder attends to it, whose depth counts in the residual scaling.
    """
    decoder = config if is_encoder_decoder and isinstance(config, EncoderDecoderConfig) else None
    shape = _Shape(
        side="encoder",
        width=config.encoder_embed_dim,
        ffn_width=config.encoder_ffn_embed_dim,
        layers=config.encoder_layers,
        other_layers=0 if decoder is None else decoder.decoder_layers,
        pre_norm=config.encoder_pre_norm,
        last_norm=config.encoder_pre_norm and config.normalize_output,
    )
    return _spec(
        config,
        shape,
        attention=_attention(config, config.encoder_attention_heads, dilated=isinstance(config, DilatedOptions)),
        positions=_positions(config, "max_source_positions", config.max_source_positions, config.encoder_learned_pos),
        multiway=_multiway(config, "encoder"),
        initialization=_initialization(config),
    )


def decoder_spec(config: DecoderConfig | EncoderDecoderConfig, *, is_encoder_decoder: bool = False) -> LayerSpec:
    """The decoder of a config with attention; arguments as for ``encoder_spec``."""
    return _spec(
        config,
        _decoder_shape(config, config if is_encoder_decoder else None),
        attention=_attention(config, config.decoder_attention_heads, dilated=isinstance(config, DecoderConfig)),
        positions=_positions(config, "max_target_positions", config.max_target_positions, config.decoder_learned_pos),
        multiway=_multiway(config, "decoder"),
        initialization=_initialization(config),
    )


def retnet_spec(config: AnyRetNetConfig, *, is_encoder_decoder: bool = False) -> LayerSpec:
    """The decoder of a config with retention; arguments as for ``encoder_spec``."""
    encoder = config if is_encoder_decoder and isinstance(config, RetNetEncoderDecoderConfig) else None
    return _spec(
        config,
        _decoder_shape(config, encoder),
        attention=None if encoder is None else _attention(encoder, encoder.decoder_attention_heads),
        retention=RetentionSpec(
            heads=config.decoder_retention_heads,
            value_width=config.decoder_value_embed_dim,
            chunkwise=config.chunkwise_recurrent,
            chunk_size=config.recurrent_chunk_size,
            backend=config.retention_backend,
        ),
        multiway=MultiwaySpec() if encoder is None else _multiway(encoder, "decoder"),
        initialization="retnet",
    )


class _Shape(NamedTuple):
    """Sizes of one side, and where its norms stand."""

    side: Side
    width: int
    ffn_width: int
    layers: int
    other_layers: int
    """Layers of the other side; 0 without one."""
    pre_norm: bool
    last_norm: bool
    memory_width: int | None = None


def _decoder_shape(config: DecoderConfig | EncoderDecoderConfig | RetNetConfig, both: AnyConfig | None) -> _Shape:
    """The shape of a decoder; ``both`` is its config if there is an encoder too."""
    encoder = both if isinstance(both, EncoderDecoderConfig) else None
    return _Shape(
        side="decoder",
        width=config.decoder_embed_dim,
        ffn_width=config.decoder_ffn_embed_dim,
        layers=config.decoder_layers,
        other_layers=0 if encoder is None else encoder.encoder_layers,
        pre_norm=config.decoder_pre_norm,
        last_norm=config.decoder_pre_norm,
        memory_width=None if encoder is None else encoder.encoder_embed_dim,
    )


def _spec(
    config: AnyConfig,
    shape: _Shape,
    *,
    attention: AttentionSpec | None,
    retention: RetentionSpec | None = None,
    positions: PositionSpec | None = None,
    multiway: MultiwaySpec,
    initialization: Initialization,
) -> LayerSpec:
    """The options of one side, and the ones that all sides share."""
    scheme, bits = _scheme(config), _bits(config)
    norm = "rmsnorm" if isinstance(config, RetNetConfig) else config.norm
    inner_norms = scheme == "subln" and bits is None  # BitNet's layers begin with norms of their own
    feed_forward = _feed_forward(config, shape.ffn_width)
    kind = (feed_forward.gated, norm if inner_norms else None)
    if retention is not None and config.torchscale_compatible:
        kind = (False, "layernorm")  # TorchScale's experts are plain, whatever the other networks are
    return LayerSpec(
        side=shape.side,
        width=shape.width,
        layers=shape.layers,
        memory_width=shape.memory_width,
        attention=attention,
        retention=retention,
        feed_forward=feed_forward,
        experts=_experts(config, shape.side, feed_forward, *kind),
        positions=positions,
        multiway=multiway,
        norm=norm,
        norm_eps=config.layernorm_eps,
        pre_norm=shape.pre_norm,
        inner_norms=inner_norms,
        last_norm=shape.last_norm,
        scheme=scheme,
        scaling=_scaling(config, scheme, shape),
        initialization=initialization,
        dropout=config.dropout,
        drop_path_rate=config.drop_path_rate,
        bits=bits,
        torchscale_compatible=config.torchscale_compatible,
    )


def _scheme(config: AnyConfig) -> Scheme:
    if config.deepnorm:
        return "deepnorm"
    return "subln" if not isinstance(config, RetNetConfig) and config.uses_subln else "plain"


def _scaling(config: AnyConfig, scheme: Scheme, shape: _Shape) -> ResidualScaling:
    is_encoder = shape.side == "encoder"
    n, m = (shape.layers, shape.other_layers) if is_encoder else (shape.other_layers, shape.layers)
    both = ResidualScaling(), ResidualScaling()
    if scheme == "subln":
        both = subln_scaling(encoder_layers=n, decoder_layers=m)
    if scheme == "deepnorm":
        both = deepnorm_scaling(encoder_layers=n, decoder_layers=m, torchscale_compatible=config.torchscale_compatible)
    return both[0] if is_encoder else both[1]


def _initialization(config: TransformerConfig) -> Initialization:
    return "bert" if config.bert_init else "torch" if config.torchscale_compatible else "xavier"


def _attention(config: TransformerConfig, heads: int, *, dilated: bool = False) -> AttentionSpec:
    """Dense or dilated attention; the decoder that attends to a dilated encoder is dense."""
    branches: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    if dilated and isinstance(config, DilatedOptions):
        branches = (config.segment_lengths, config.dilation_ratios)
    return AttentionSpec(heads, config.attention_dropout, config.backend, *branches)


def _feed_forward(config: AnyConfig, width: int) -> FeedForwardSpec:
    return FeedForwardSpec(
        width=width,
        activation=config.activation_fn,
        dropout=config.activation_dropout,
        gated=isinstance(config, RetNetConfig) or config.gated_ffn,
        chunk_size=config.ffn_chunk_size,
    )


def _experts(
    config: AnyConfig, side: Side, feed_forward: FeedForwardSpec, gated: bool, norm: str | None
) -> ExpertSpec | None:
    every, count = config.expert_freq(side), config.moe_expert_count
    if not every:
        return None
    official, dropout = config.torchscale_compatible, config.moe_expert_dropout
    return ExpertSpec(
        every=every,
        count=count,
        width=config.moe_expert_ffn_dim or feed_forward.width,
        gated=gated,
        norm=norm,
        dropout=feed_forward.dropout if dropout is None else dropout,
        router="linear" if not config.use_xmoe else "torchscale_cosine" if official else "cosine",
        routing_width=config.moe_routing_dim or max(count // 2, 4),
        frozen_router=config.moe_freeze_routing,
        routing=_routing(config),
        time_first=official and side == "encoder",
        norm_weight=1 / count if config.moe_clip == "sparse" else 1.0,
        gradient_root=config.moe_normalize_expert_grad == "sqrt_world_size",
    )


def _routing(config: AnyConfig) -> RoutingOptions:
    official = config.torchscale_compatible
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


def _positions(config: TransformerConfig, option: str, longest: int, learned: bool) -> PositionSpec:
    return PositionSpec(
        absolute=config.has_absolute_positions,
        learned=learned,
        longest=longest,
        option=option,
        buckets=config.rel_pos_buckets,
        max_distance=config.max_rel_pos,
        xpos=config.xpos_rel_pos,
        xpos_scale_base=config.xpos_scale_base,
    )


def _multiway(config: TransformerConfig, side: Side) -> MultiwaySpec:
    """The paper doubles feed-forward networks; TorchScale doubles all of an encoder, and attention in a decoder."""
    everything, encoder = config.multiway and config.torchscale_compatible, side == "encoder"
    return MultiwaySpec(config.multiway and encoder, everything, everything and encoder)


def _bits(config: AnyConfig) -> BitKind | None:
    if config.bitnet is None:
        return None
    return BitKind(config.bitnet, config.bitnet_recipe or "faq", config.layernorm_eps, config.bitnet_packed)
