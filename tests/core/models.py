"""Small models of every kind that the core builds."""

from typing import Any, TypeVar

import torch
from torch import nn

from torchscale_fairseq import (
    Decoder,
    DecoderConfig,
    Encoder,
    EncoderConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    RetNetConfig,
    RetNetDecoder,
)

VOCABULARY = 40
SIZES: dict[str, Any] = {"embed_dim": 24, "ffn_embed_dim": 32, "attention_heads": 4, "layers": 3}

VARIANTS: dict[str, dict[str, Any]] = {
    "subln": {},
    "deepnorm": {"deepnorm": True},
    "preln": {"subln": False},
    "postln": {"subln": False, "normalize_before": False},
    "xpos": {"xpos_rel_pos": True},
    "xpos_deepnorm_sinusoidal": {
        "xpos_rel_pos": True,
        "deepnorm": True,
        "no_token_positional_embeddings": False,
        "xpos_scale_base": 32,
    },
    "relative_bias": {"rel_pos_buckets": 8, "max_rel_pos": 16},
    "learned": {"learned_pos": True},
    "rmsnorm_glu": {"norm": "rmsnorm", "gated_ffn": True, "activation_fn": "swish"},
    "naive": {"attention_backend": "naive"},
    "blockwise": {"xpos_rel_pos": True, "xpos_scale_base": 32, "blockwise_causal_window": 6},
    "compatible_xpos": {"xpos_rel_pos": True, "torchscale_compatible": True},
    "compatible_bias": {"rel_pos_buckets": 8, "max_rel_pos": 16, "torchscale_compatible": True},
}
LONGNETS: dict[str, dict[str, Any]] = {
    "nested": {"segment_length": "[4,8,16]", "dilated_ratio": "[1,2,4]"},
    "odd": {"segment_length": [5, 7], "dilated_ratio": [2, 3]},
    "ratio_above_heads": {"segment_length": [3, 12], "dilated_ratio": [1, 6]},
    "longer_than_text": {"segment_length": [64], "dilated_ratio": [3]},
    "xpos": {"segment_length": [4, 12], "dilated_ratio": [1, 2], "xpos_rel_pos": True, "xpos_scale_base": 32},
    "deepnorm": {"segment_length": [4, 12], "dilated_ratio": [1, 2], "deepnorm": True},
    "naive": {"segment_length": [4, 12], "dilated_ratio": [1, 3], "attention_backend": "naive"},
    "compatible": {
        "segment_length": [4, 8],
        "dilated_ratio": [1, 2],
        "xpos_rel_pos": True,
        "torchscale_compatible": True,
    },
    "experts": {"segment_length": [4, 8], "dilated_ratio": [1, 2], "moe_freq": 2, "moe_expert_count": 4},
}
PER_SIDE = ("normalize_before", "learned_pos")
DECODERS_ONLY = ("blockwise_causal_window",)


def options(variant: dict[str, Any], *sides: str) -> dict[str, Any]:
    """Keyword arguments of a config, with sizes and each side's own options."""
    left_out = PER_SIDE if "decoder" in sides else PER_SIDE + DECODERS_ONLY
    result = {k: v for k, v in variant.items() if k not in left_out}
    for side in sides:
        result |= {f"{side}_{k}": v for k, v in SIZES.items()}
        result |= {f"{side}_{k}": variant[k] for k in PER_SIDE if k in variant}
    return {"vocab_size": VOCABULARY, **result}


Model = TypeVar("Model", bound=nn.Module)


def randomize(model: Model, seed: int = 0) -> Model:
    """Redraw all parameters, so that norms and biases matter too."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.data = (1 + 0.2 * noise if "norm" in name or "_ln" in name else 0.3 * noise).to(p.dtype)
    return model.eval()


def _embeddings(config: Any, width: int) -> list[Any]:
    from torchscale_fairseq.core.layers.embedding import SinusoidalPositionalEmbedding, TextEmbedding

    if not config.torchscale_compatible:
        return []
    return [TextEmbedding(VOCABULARY, width, 1), SinusoidalPositionalEmbedding(1024, width)]


def encoder(**variant: Any) -> Encoder:
    config = EncoderConfig(**options(variant, "encoder"))
    return randomize(Encoder(config, *_embeddings(config, SIZES["embed_dim"])))


def decoder(**variant: Any) -> Decoder:
    config = DecoderConfig(**options(variant, "decoder"))
    return randomize(Decoder(config, *_embeddings(config, SIZES["embed_dim"])))


def encoder_decoder(**variant: Any) -> EncoderDecoder:
    config = EncoderDecoderConfig(**options(variant, "encoder", "decoder"))
    width = SIZES["embed_dim"]
    return randomize(EncoderDecoder(config, *_embeddings(config, width), *_embeddings(config, width)))


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random tokens without padding, (batch, length)."""
    return torch.randint(4, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def retnet(**options: Any) -> RetNetDecoder:
    """A small one in float64."""
    sizes: dict[str, Any] = {
        "decoder_embed_dim": 24,
        "decoder_value_embed_dim": 48,
        "decoder_ffn_embed_dim": 32,
        "decoder_layers": 2,
    }
    config = RetNetConfig(vocab_size=VOCABULARY, decoder_retention_heads=4, **sizes, **options)
    model = RetNetDecoder(config)
    randomize(model)
    return model.double()  # forms of retention round differently
