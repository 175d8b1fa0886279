"""Parameters of a model, counted by hand from its config; no module is built."""

from typing import Any

from tests.plugin.registered import CLASSES, WORDS
from torchscale_fairseq.core.config import (
    BEiT3Config,
    DecoderConfig,
    EncoderDecoderConfig,
    LongViTConfig,
    RetNetConfig,
    RetNetEncoderDecoderConfig,
    SlideEncoderConfig,
    SpeechOptions,
    ViTConfig,
)

POSITIONS = 1024 + 2
"""Learned vectors for as many tokens as fairseq allows, which numbers them from 2."""
TILE_FEATURES = 1536


def parameters(c: Any) -> int:
    if isinstance(c, DecoderConfig | RetNetConfig):
        return decoder(c)
    if isinstance(c, SpeechOptions):
        return speech(c)
    if isinstance(c, EncoderDecoderConfig | RetNetEncoderDecoderConfig):
        return encoder(c) + decoder(c)
    if isinstance(c, LongViTConfig):
        return encoder(c) + image_patches(c) + image_classifier(c)
    if isinstance(c, ViTConfig):
        class_token = 2 * c.encoder_embed_dim if c.pooling == "class_token" else 0
        return encoder(c) + image_patches(c) + class_token + plain_image_classifier(c)
    if isinstance(c, SlideEncoderConfig):
        return encoder(c) + tiles_and_classifier(c)
    if isinstance(c, BEiT3Config):
        return encoder(c) + WORDS * c.encoder_embed_dim + image_and_text_inputs(c) + image_and_text_heads(c) + head(c)
    return encoder(c) + WORDS * c.encoder_embed_dim + head(c)


def speech(c: Any) -> int:
    """Convolutions stand where the encoder of text has its embedding."""
    return encoder(c) - WORDS * c.encoder_embed_dim + convolutions(c) + decoder(c)


def encoder(c: Any) -> int:
    """Layers and positions of the encoder; in a model of two sides, its embedding as well."""
    e = c.encoder_embed_dim
    layers = c.encoder_layers * layer(c, e, c.encoder_ffn_embed_dim, attention(c, e, e))
    mixtures = more_experts(c, e, c.encoder_ffn_embed_dim, c.encoder_layers)
    embedding = WORDS * e if isinstance(c, EncoderDecoderConfig | RetNetEncoderDecoderConfig) else 0
    positions = POSITIONS * e if c.encoder_learned_pos else 0
    norms = (2 * e if c.layernorm_embedding else 0) + (norm(c, e) if c.encoder_pre_norm else 0)
    return layers + mixtures + embedding + positions + norms


def decoder(c: Any) -> int:
    """Layers, embedding and output projection of the decoder."""
    d = c.decoder_embed_dim
    retains = isinstance(c, RetNetConfig | RetNetEncoderDecoderConfig)
    mixing = retention(d, c.decoder_value_embed_dim) if retains else attention(c, d, d)
    one = layer(c, d, c.decoder_ffn_embed_dim, mixing)
    if isinstance(c, EncoderDecoderConfig | RetNetEncoderDecoderConfig):
        one += attention(c, d, c.encoder_embed_dim) + norm(c, d)
    mixtures = more_experts(c, d, c.decoder_ffn_embed_dim, c.decoder_layers)
    return c.decoder_layers * one + mixtures + (norm(c, d) if c.decoder_pre_norm else 0) + 2 * WORDS * d


def layer(c: Any, width: int, inner: int, mixing: int) -> int:
    """One layer: attention or retention with ``mixing`` parameters, feed-forward networks and norms."""
    ways = 1 if isinstance(c, RetNetConfig) else 1 + c.multiway
    return mixing + ways * feed_forward(c, width, inner) + layer_norms(c, width, inner) + inner_attention_norm(c, width)


def attention(c: Any, width: int, memory: int) -> int:
    """Four projections, of which keys and values come from vectors of ``memory`` entries."""
    bias = 0 if c.bitnet else 4 * width
    return 2 * width * width + 2 * memory * width + bias


def retention(width: int, values: int) -> int:
    """Queries and keys; values, their gate and the output."""
    return 2 * width * width + 3 * width * values


def feed_forward(c: Any, width: int, inner: int) -> int:
    if isinstance(c, RetNetConfig) or c.gated_ffn:
        return 3 * width * inner
    return 2 * width * inner + width + inner + (2 * inner if c.uses_subln else 0)


def inner_attention_norm(c: Any, width: int) -> int:
    return 2 * width if not isinstance(c, RetNetConfig) and c.uses_subln else 0


def norm(c: Any, width: int) -> int:
    return width if isinstance(c, RetNetConfig) or c.norm == "rmsnorm" else 2 * width


def layer_norms(c: Any, width: int, inner: int) -> int:
    """One in front of each sublayer; in BitNet, one in front of each linear layer instead."""
    return norm(c, 4 * width + 2 * width + inner) if c.bitnet else norm(c, 2 * width)


def more_experts(c: Any, width: int, inner: int, layers: int) -> int:
    """Experts beyond the network that every layer has, with X-MoE's router: projection, expert vectors, temperature."""
    if not c.moe_freq:
        return 0
    assert c.use_xmoe
    experts, dim = c.moe_expert_count, max(c.moe_expert_count // 2, 4)
    one = (experts - 1) * feed_forward(c, width, inner) + width * dim + experts * dim + 1
    return layers // c.moe_freq * one


def head(c: Any) -> int:
    """Of a masked language model: dense layer, norm and bias; its vectors are the embedding's."""
    e = c.encoder_embed_dim
    return e * e + e + 2 * e + WORDS


def convolutions(c: Any) -> int:
    """Two, of five frames each, whose gates halve their output."""
    first = 5 * 80 * c.conv_channels + c.conv_channels
    return first + (5 * c.conv_channels // 2 + 1) * 2 * c.encoder_embed_dim


def image_patches(c: Any) -> int:
    """A vector per position, and the projection of a patch."""
    e = c.encoder_embed_dim
    return c.num_patches * e + 3 * c.patch_size**2 * e + e


def image_classifier(c: Any) -> int:
    """A norm that replaces the encoder's, and a linear layer."""
    e = c.encoder_embed_dim
    return 2 * e + (e + 1) * CLASSES - 2 * e


def plain_image_classifier(c: Any) -> int:
    """A norm, which replaces that of a pre-norm encoder, and a linear layer."""
    e = c.encoder_embed_dim
    return (0 if c.encoder_pre_norm else 2 * e) + (e + 1) * CLASSES


def tiles_and_classifier(c: Any) -> int:
    """The projection of a tile's features, the class token, a norm and a linear layer."""
    e = c.encoder_embed_dim
    return (TILE_FEATURES + 1) * e + e + 2 * e + (e + 1) * CLASSES


def image_and_text_inputs(c: Any) -> int:
    """Positions of words and patches, the projection of a patch, and the tokens for class and mask."""
    e = c.encoder_embed_dim
    return POSITIONS * e + (c.num_patches + 1 + 2) * e + (3 * c.patch_size**2 + 1) * e + 2 * e


def image_and_text_heads(c: Any) -> int:
    """Linear layers to a patch's pixels, and to whether image and text match."""
    patch = 3 * c.patch_size**2
    return (c.encoder_embed_dim + 1) * patch + (c.encoder_embed_dim + 1) * 2
