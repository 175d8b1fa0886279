"""The base of the layers of the encoder, the decoder and RetNet."""

from typing import Any

import torch
from torch import Tensor, nn

from ...core.initialization import ResidualScaling, deepnorm_scaling, scale_layers, subln_scaling
from ..component.droppath import DropPath
from ..component.feedforward_network import FeedForwardNetwork, make_experts
from ..component.multihead_attention import MultiheadAttention
from ..component.multiway_network import MultiwayWrapper
from ..component.xmoe.moe_layer import MOELayer
from ..component.xmoe.routing import Top1Gate, Top2Gate


def scaling_of(args: Any, side: str, is_encoder_decoder: bool) -> ResidualScaling:
    """Factors on the residual and on initial values.

    Raises:
        AttributeError: an encoder with a decoder needs the decoder's number of layers, which the config lacks.
    """
    if not args.deepnorm and not args.subln:
        return ResidualScaling()
    which = 0 if side == "encoder" else 1
    sides = {"encoder_layers": 0, "decoder_layers": 0, f"{side}_layers": getattr(args, f"{side}_layers")}
    if is_encoder_decoder:
        other = "decoder_layers" if side == "encoder" else "encoder_layers"
        sides[other] = _layers_of_other_side(args, other)
    if args.deepnorm:
        return deepnorm_scaling(**sides, torchscale_compatible=True)[which]
    return subln_scaling(**sides)[which]


def _layers_of_other_side(args: Any, name: str) -> int:
    if name == "decoder_layers" and not hasattr(args, name):
        raise AttributeError(
            "the encoder of an encoder-decoder with deepnorm or subln needs the number of decoder layers; use an "
            "EncoderDecoderConfig, or set config.decoder_layers."
        )
    return int(getattr(args, name, 1))  # a decoder's factors depend on its own layers alone


def scale_initial_values(model: nn.Module, args: Any, side: str, is_encoder_decoder: bool) -> None:
    """Multiply projections by the gain of deepnorm or subln."""
    gain = scaling_of(args, side, is_encoder_decoder).gain
    scale_layers(model, gain=gain, scale_cross_attention=args.deepnorm)


def drop_path_of(args: Any, depth: int, layers: int) -> DropPath | None:
    """Stochastic depth that grows with the depth; None for none."""
    if args.drop_path_rate <= 0:
        return None
    return DropPath(float(torch.linspace(0, args.drop_path_rate, layers)[depth]))


def moe_layer_of(args: Any, embed_dim: int, ffn_dim: int) -> MOELayer:
    """The experts of a layer, with their gate."""
    common = {
        "use_fp32": args.moe_gating_use_fp32,
        "moe_eval_capacity_token_fraction": args.moe_eval_capacity_token_fraction,
        "use_xmoe": args.use_xmoe,
    }
    gate: nn.Module
    if args.moe_top1_expert:
        gate = Top1Gate(embed_dim, args.moe_expert_count, **common)
    else:
        gate = Top2Gate(
            embed_dim,
            args.moe_expert_count,
            second_expert_policy=args.moe_second_expert_policy,
            normalize_gate_prob_before_dropping=args.moe_normalize_gate_prob_before_dropping,
            **common,
        )
    return MOELayer(gate, make_experts(args, embed_dim, ffn_dim), args)


def layer_norm(args: Any, width: int, *, multiway: bool = True) -> nn.Module:
    """Doubled in a multiway model."""
    norm = nn.LayerNorm(width, eps=args.layernorm_eps)
    return MultiwayWrapper(args, norm) if multiway else norm


def build_feed_forward(args: Any, embed_dim: int, ffn_dim: int) -> FeedForwardNetwork:
    """The feed-forward network of a layer."""
    return FeedForwardNetwork(
        embed_dim, ffn_dim, args.activation_fn, args.dropout, args.activation_dropout, args.layernorm_eps, args.subln
    )


def attention_of(
    args: Any, embed_dim: int, heads: int, kind: type[MultiheadAttention] = MultiheadAttention, *, cross: bool = False
) -> MultiheadAttention:
    """Attention of a layer to its own sequence, or with ``cross`` to the encoder's output."""
    return kind(
        args,
        embed_dim,
        heads,
        dropout=args.attention_dropout,
        self_attention=not cross,
        encoder_decoder_attention=cross,
        subln=args.subln,
    )


class LayerBase(nn.Module):
    """The second half of a layer, and its residual connection."""

    alpha: float
    embed_dim: int
    normalize_before: bool
    build_ffn: Any
    drop_path: Any
    final_layer_norm: Any

    def _set_feed_forward(self, args: Any, ffn_dim: int, is_moe_layer: bool, *, multiway: bool = False) -> None:
        """Make the feed-forward network, or the experts of a layer that has some."""
        self.is_moe_layer, self.ffn_dim = is_moe_layer, ffn_dim
        if is_moe_layer:
            assert not multiway, "multiway and moe_freq cannot both be on."
            self.moe_layer: Any = moe_layer_of(args, self.embed_dim, ffn_dim)
        else:
            ffn = self.build_ffn(self.embed_dim, args)
            self.ffn: Any = MultiwayWrapper(args, ffn) if multiway else ffn

    def residual_connection(self, x: Tensor, residual: Tensor) -> Tensor:
        """The residual, scaled by DeepNorm's alpha, plus x."""
        return residual * self.alpha + x

    def _feed_forward(self, x: Tensor, *, time_first: bool) -> tuple[Tensor, Tensor | None]:
        residual, l_aux = x, None
        if self.normalize_before:
            x = self.final_layer_norm(x)
        if not self.is_moe_layer:
            x = self.ffn(x)
        elif time_first:
            x, l_aux = self.moe_layer(x.transpose(0, 1))
            x = x.transpose(0, 1)
        else:
            x, l_aux = self.moe_layer(x)
        return self._add(x, residual, self.final_layer_norm), l_aux

    def _add(self, x: Tensor, residual: Tensor, norm: nn.Module) -> Tensor:
        if self.drop_path is not None:
            x = self.drop_path(x)
        x = self.residual_connection(x, residual)
        return x if self.normalize_before else norm(x)
