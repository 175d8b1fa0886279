"""A tiny model of every family, with an input that has padding, as a caller of the core gives it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.core.models import VOCABULARY, decoder, encoder, encoder_decoder, randomize, tokens
from torchscale_fairseq import (
    BEiT3,
    BEiT3Config,
    EncoderDecoder,
    LongViT,
    LongViTConfig,
    RetNetConfig,
    RetNetDecoder,
    RetNetEncoderDecoderConfig,
)

LENGTH = 12
_ENCODER: dict[str, Any] = {
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 4,
    "encoder_layers": 2,
}
_RETENTION: dict[str, Any] = {
    "decoder_embed_dim": 16,
    "decoder_value_embed_dim": 24,
    "decoder_ffn_embed_dim": 24,
    "decoder_retention_heads": 2,
    "decoder_layers": 2,
}
_LONGNET: dict[str, Any] = {"segment_length": [4, 8], "dilated_ratio": [1, 2]}
_EXPERTS: dict[str, Any] = {"moe_freq": 2, "moe_expert_count": 4, "use_xmoe": True}


@dataclass(frozen=True)
class Family:
    """A model and how to call it."""

    build: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    masks: dict[str, Tensor]
    """By argument; bool, True in the last columns of the first row."""


def beit3() -> nn.Module:
    return randomize(BEiT3(BEiT3Config(vocab_size=VOCABULARY, img_size=8, patch_size=4, **_ENCODER)))


def longvit() -> nn.Module:
    return randomize(LongViT(LongViTConfig(img_size=32, patch_size=8, **_ENCODER, **_LONGNET)))


def retnet() -> nn.Module:
    return randomize(RetNetDecoder(RetNetConfig(vocab_size=VOCABULARY, **_RETENTION)))


def retnet_translator() -> nn.Module:
    sizes: dict[str, Any] = {**_ENCODER, **_RETENTION, "decoder_attention_heads": 4}
    return randomize(EncoderDecoder(RetNetEncoderDecoderConfig(vocab_size=VOCABULARY, **sizes)))


def _padding(length: int = LENGTH) -> Tensor:
    mask = torch.zeros(2, length, dtype=torch.bool)
    mask[0, length - 3 :] = True
    return mask


_TEXT = (tokens(2, LENGTH),)
_PAIR = (tokens(2, LENGTH), tokens(2, LENGTH, seed=1))
_IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
_SOURCE = {"encoder_padding_mask": _padding()}
_TARGET = {"self_attn_padding_mask": _padding().flip(1)}
_BEIT3 = {"text_padding_position": _padding(), "vision_masked_position": _padding(4)}

FAMILIES = {
    "bert_sinusoidal": Family(encoder, _TEXT, _SOURCE),
    "bert_learned": Family(lambda: encoder(learned_pos=True, layernorm_embedding=True), _TEXT, _SOURCE),
    "bert_bias": Family(lambda: encoder(rel_pos_buckets=8, max_rel_pos=16), _TEXT, _SOURCE),
    "gpt_deepnorm": Family(lambda: decoder(deepnorm=True), _TEXT, _TARGET),
    "gpt_compatible": Family(lambda: decoder(torchscale_compatible=True), _TEXT, _TARGET),
    "gpt_xpos": Family(lambda: decoder(xpos_rel_pos=True, blockwise_causal_window=6), _TEXT, _TARGET),
    "gpt_experts": Family(lambda: decoder(**_EXPERTS), _TEXT, _TARGET),
    "bitnet": Family(lambda: decoder(bitnet="b1.58", subln=False), _TEXT, _TARGET),
    "longnet": Family(lambda: decoder(**_LONGNET), _TEXT, _TARGET),
    "longnet_encoder": Family(lambda: encoder(**_LONGNET), _TEXT, _SOURCE),
    "mt_deepnorm": Family(lambda: encoder_decoder(deepnorm=True), _PAIR, {**_SOURCE, **_TARGET}),
    "mt_xmoe": Family(lambda: encoder_decoder(deepnorm=True, **_EXPERTS), _PAIR, {**_SOURCE, **_TARGET}),
    "mt_retnet": Family(retnet_translator, _PAIR, {**_SOURCE, **_TARGET}),
    "retnet": Family(retnet, _TEXT, {**_TARGET, "document_starts": _padding().roll(4, 1)}),
    "beit3": Family(beit3, (tokens(2, LENGTH), _IMAGES), _BEIT3),
    "longvit": Family(longvit, (torch.randn(2, 3, 32, 32),), {}),
}


def main_output(output: Any) -> Tensor:
    """Logits or features, whatever a model returns besides."""
    if isinstance(output, dict):
        output = output["encoder_out"]
    result: Tensor = output if isinstance(output, Tensor) else output[0]
    return result
