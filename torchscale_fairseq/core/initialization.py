"""Initial values, as functions of a model's depth."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from .layers.grouped import GroupedLinear

LINEAR = (nn.Linear, GroupedLinear)

SCALED_PROJECTIONS = ("v_proj", "out_proj", "fc1", "fc2", "gate")
BERT_STD = 0.02


@dataclass(frozen=True)
class ResidualScaling:
    """How one side of a model is scaled by its depth."""

    alpha: float = 1.0
    """Factor on the residual branch."""
    gain: float = 1.0
    """Factor on the initial value, output and feed-forward projections."""


def deepnorm_scaling(
    *, encoder_layers: int, decoder_layers: int, torchscale_compatible: bool = False
) -> tuple[ResidualScaling, ResidualScaling]:
    """DeepNorm's constants for encoder and decoder; zero layers where a side does not exist.

    DeepNet, arXiv:2203.00555, figure 2. TorchScale's code multiplies the encoder's weights of an
    encoder-decoder by 1.15 where the paper has 0.87 = 1 / 1.15.
    """
    n, m = encoder_layers, decoder_layers
    if n and m:
        joint = (n**4 * m) ** (1 / 16)
        beta = 1.15 if torchscale_compatible else 0.87
        return ResidualScaling(0.81 * joint, beta / joint), ResidualScaling((3 * m) ** 0.25, (12 * m) ** -0.25)
    alone = ResidualScaling((2 * (n + m)) ** 0.25, (8 * (n + m)) ** -0.25)
    return alone, alone


def subln_scaling(*, encoder_layers: int, decoder_layers: int) -> tuple[ResidualScaling, ResidualScaling]:
    """SubLN's gains for encoder and decoder; zero layers where a side does not exist.

    Magneto, arXiv:2210.06423, sec. 2.2 and table 2.
    """
    n, m = encoder_layers, decoder_layers
    if n and m:
        encoder = math.sqrt(math.log(3 * m) * math.log(2 * n) / 3)
        return ResidualScaling(gain=encoder), ResidualScaling(gain=math.sqrt(math.log(3 * m)))
    alone = ResidualScaling(gain=math.sqrt(math.log(2 * (n + m))))
    return alone, alone


def initialize_layers(layers: nn.Module, *, gain: float, xavier: str, scale_cross_attention: bool) -> None:
    """Xavier-initialise all linear layers, biases zero; value, output and feed-forward ones with a gain.

    Args:
        layers: the layers of one side.
        gain: factor on value, output and feed-forward projections.
        xavier: "normal", as DeepNet and Magneto have it, or "uniform" with queries, keys and values smaller
            by sqrt(2), as is usual for plain transformers.
        scale_cross_attention: whether the gain applies to cross-attention too.
    """
    for name, linear in _named_linears(layers):
        scaled = gain if _is_scaled(name, scale_cross_attention) else 1.0
        is_input = any(part in name for part in ("q_proj", "k_proj", "v_proj"))
        for weight, bias in _matrices(linear):
            if xavier == "normal":
                nn.init.xavier_normal_(weight, gain=scaled)
            else:
                nn.init.xavier_uniform_(weight, gain=scaled * (2**-0.5 if is_input else 1.0))
            if bias is not None:
                nn.init.zeros_(bias)


def scale_layers(layers: nn.Module, *, gain: float, scale_cross_attention: bool) -> None:
    """Multiply value, output and feed-forward projections by a gain, biases included, as TorchScale does."""
    for name, linear in _named_linears(layers):
        if _is_scaled(name, scale_cross_attention):
            for parameter in linear.parameters(recurse=False):
                parameter.data.mul_(gain)


def initialize_bert(model: nn.Module) -> None:
    """Linear layers and embeddings from N(0, 0.02), biases and padding rows zero (BERT, arXiv:1810.04805)."""
    for module in model.modules():
        if isinstance(module, LINEAR):
            for weight, bias in _matrices(module):
                nn.init.normal_(weight, std=BERT_STD)
                if bias is not None:
                    nn.init.zeros_(bias)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=BERT_STD)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx].data)


def _matrices(linear: nn.Linear | GroupedLinear) -> Iterator[tuple[Tensor, Tensor | None]]:
    if isinstance(linear, GroupedLinear):
        yield from linear.matrices()
    else:
        yield linear.weight, linear.bias


def _named_linears(layers: nn.Module) -> list[tuple[str, nn.Linear | GroupedLinear]]:
    return [(name, module) for name, module in layers.named_modules() if isinstance(module, LINEAR)]


def _is_scaled(name: str, scale_cross_attention: bool) -> bool:
    parts = name.split(".")
    if "moe_layer" in parts and "experts" not in parts:
        return False  # a router
    return any(p in parts for p in SCALED_PROJECTIONS) and (scale_cross_attention or "encoder_attn" not in parts)


RETENTION_GAINS = {"q_proj": 2**-2.5, "k_proj": 2**-2.5, "v_proj": 2**-2.5, "g_proj": 2**-2.5, "out_proj": 2**-1.0}
"""Gains of Xavier's initialisation, as the authors' code of RetNet has them."""
_SCALED_BY_RETNET = ("v_proj", "out_proj", "fc1", "fc2")


def initialize_retnet(layers: nn.Module, *, gain: float, torchscale_compatible: bool) -> None:
    """Xavier-initialise the linear layers of a RetNet, those of retention with ``RETENTION_GAINS``.

    Args:
        layers: the layers of the decoder.
        gain: further factor on values, outputs and feed-forward networks (DeepNorm's).
        torchscale_compatible: leave feed-forward networks with nn.Linear's own values, as TorchScale does.
    """
    for name, linear in _named_linears(layers):
        *parents, own = name.split(".")
        for weight, _ in _matrices(linear):
            if "retention" in parents:
                nn.init.xavier_uniform_(weight, gain=RETENTION_GAINS[own])
            elif not torchscale_compatible:
                nn.init.xavier_uniform_(weight)
        if gain != 1.0 and own in _SCALED_BY_RETNET:
            linear.weight.data.mul_(gain)
