"""Builds the modules that the layers of one side are made of."""

from collections.abc import Callable
from functools import partial

from torch import nn

from ..layers.attention import MultiheadAttention
from ..layers.dilated_attention import DilatedAttention
from ..layers.embedding import PositionalEmbedding, SinusoidalPositionalEmbedding
from ..layers.experts import Experts
from ..layers.feed_forward import FeedForwardNetwork, GatedLinearUnit
from ..layers.grouped import GroupedLinear
from ..layers.linear import LinearFactory, dense
from ..layers.moe import MixtureOfExperts
from ..layers.multiway import single_or_multiway
from ..layers.norm import build_norm
from ..layers.relative_position import RelativePositionBias
from ..layers.residual import Residual
from ..layers.retention import MultiScaleRetention
from ..layers.router import CosineRouter, LinearRouter, TorchScaleCosineRouter
from ..ops.positions import FIRST_POSITION, PADDING_POSITION
from ..parallel.groups import split_experts
from .spec import ExpertSpec, LayerSpec


class LayerFactory:
    """Builds attention, feed-forward networks, experts, norms, residual connections and positions.

    A subclass may build others in their place; ``Stack.layer_factory`` says which factory a model uses.

    Args:
        spec: what to build.
    """

    def __init__(self, spec: LayerSpec):
        self.spec = spec

    @property
    def linear(self) -> LinearFactory:
        """Builds linear layers inside sublayers."""
        return dense if self.spec.bits is None else self.spec.bits.linear

    def norm(self) -> nn.Module:
        """A norm over the side's width."""
        return single_or_multiway(self.spec.multiway.norms, self._norm)

    def sublayer_norm(self) -> nn.Module:
        """The norm of a sublayer without a router; in front of BitNet's layers, which have their own, there is none."""
        return nn.Identity() if self.spec.bits is not None and self.spec.pre_norm else self.norm()

    def residual(self, depth: int) -> Residual:
        """The residual connection of layer ``depth``, counted from 0."""
        spec = self.spec
        drop_path_rate = spec.drop_path_rate * depth / max(spec.layers - 1, 1)
        return Residual(
            alpha=spec.scaling.alpha, pre_norm=spec.pre_norm, dropout=spec.dropout, drop_path_rate=drop_path_rate
        )

    def self_attention(self) -> MultiheadAttention:
        """Dense or dilated self-attention."""
        attention, multiway = self.spec.attention, self.spec.multiway.attention
        assert attention is not None
        build: Callable[..., MultiheadAttention] = MultiheadAttention
        if attention.segment_lengths:
            build = partial(
                DilatedAttention,
                segment_lengths=attention.segment_lengths,
                dilation_ratios=attention.dilation_ratios,
                torchscale_compatible=self.spec.torchscale_compatible,
            )
        return build(
            self.spec.width,
            attention.heads,
            dropout=attention.dropout,
            inner_norm=single_or_multiway(multiway, self._norm) if self.spec.inner_norms else None,
            backend=attention.backend,
            multiway=multiway,
            linear=self.linear,
        )

    def cross_attention(self) -> MultiheadAttention | None:
        """Attention to the encoder's output, if there is an encoder; SubLN adds nothing to it."""
        attention = self.spec.attention
        if self.spec.memory_width is None:
            return None
        assert attention is not None
        return MultiheadAttention(
            self.spec.width,
            attention.heads,
            memory_dim=self.spec.memory_width,
            dropout=attention.dropout,
            backend=attention.backend,
            multiway=self.spec.multiway.attention,
            linear=self.linear,
        )

    def retention(self) -> MultiScaleRetention:
        """Multi-scale retention."""
        retention = self.spec.retention
        assert retention is not None
        return MultiScaleRetention(
            self.spec.width,
            retention.value_width,
            retention.heads,
            norm_eps=self.spec.norm_eps,
            clamp_scores=self.spec.torchscale_compatible,
            chunkwise=retention.chunkwise,
            chunk_size=retention.chunk_size,
            backend=retention.backend,
            linear=self.linear,
        )

    def feed_forward(self) -> nn.Module:
        """A feed-forward network."""
        spec, inner_norms = self.spec.feed_forward, self.spec.inner_norms
        kind = GatedLinearUnit if spec.gated else FeedForwardNetwork
        return single_or_multiway(
            self.spec.multiway.feed_forward,
            lambda: kind(
                self.spec.width,
                spec.width,
                activation_fn=spec.activation,
                activation_dropout=spec.dropout,
                inner_norm=self._norm(spec.width) if inner_norms else None,
                linear=self.linear,
                chunk_size=spec.chunk_size,
            ),
        )

    def mixture_of_experts(self, depth: int) -> MixtureOfExperts | None:
        """The experts of layer ``depth``, counted from 0, and their router, if this layer has experts."""
        spec = self.spec.experts
        if spec is None or (depth + 1) % spec.every:
            return None
        experts = Experts(
            split_experts(spec.count),
            self.spec.width,
            spec.width,
            gated=spec.gated,
            activation_fn=self.spec.feed_forward.activation,
            dropout=spec.dropout,
            norm=spec.norm,
            eps=self.spec.norm_eps,
            norm_weight=spec.norm_weight,
            gradient_root=spec.gradient_root,
            linear=GroupedLinear if self.spec.bits is None else self.spec.bits.grouped_linear,
        )
        router = self.router(spec)
        router.requires_grad_(not spec.frozen_router)
        return MixtureOfExperts(router, experts, spec.routing, time_first=spec.time_first)

    def router(self, spec: ExpertSpec) -> nn.Module:
        """The router of a mixture of experts."""
        if spec.router == "linear":
            return LinearRouter(self.spec.width, spec.count)
        if spec.router == "torchscale_cosine":
            return TorchScaleCosineRouter(self.spec.width, spec.count)
        return CosineRouter(self.spec.width, spec.count, spec.routing_width)

    def relative_bias(self, *, bidirectional: bool) -> RelativePositionBias | None:
        """T5's bias, if scores have one."""
        positions, attention = self.spec.positions, self.spec.attention
        if positions is None or attention is None or not positions.buckets:
            return None
        return RelativePositionBias(
            attention.heads,
            bidirectional=bidirectional,
            num_buckets=positions.buckets,
            max_distance=positions.max_distance,
        )

    def position_embedding(self) -> PositionalEmbedding | SinusoidalPositionalEmbedding | None:
        """Learned or sinusoidal positions, if embeddings have absolute ones."""
        positions = self.spec.positions
        if positions is None or not positions.absolute:
            return None
        if positions.learned:
            rows = positions.longest + FIRST_POSITION
            return PositionalEmbedding(rows, self.spec.width, padding_idx=PADDING_POSITION)
        return SinusoidalPositionalEmbedding(positions.longest, self.spec.width)

    def _norm(self, width: int | None = None) -> nn.Module:
        return build_norm(self.spec.norm, width or self.spec.width, self.spec.norm_eps)
