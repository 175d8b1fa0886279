"""LongNet with TorchScale's arguments (arXiv:2307.02486)."""

from typing import Any

from torch import nn

from ..architecture._layers import attention_of
from ..architecture.decoder import Decoder, DecoderLayer
from ..architecture.encoder import Encoder, EncoderLayer
from ..component.dilated_attention import DilatedAttention


class LongNetDecoderLayer(DecoderLayer):
    """A ``DecoderLayer`` with dilated attention."""

    def build_self_attention(self, embed_dim: int, args: Any) -> nn.Module:
        """Dilated self-attention."""
        return attention_of(args, embed_dim, args.decoder_attention_heads, DilatedAttention)


class LongNetDecoder(Decoder):
    """A ``Decoder`` of such layers."""

    def build_decoder_layer(
        self, args: Any, depth: int, is_moe_layer: bool = False, is_encoder_decoder: bool = False
    ) -> nn.Module:
        """One layer."""
        return LongNetDecoderLayer(args, depth, is_moe_layer=is_moe_layer, is_encoder_decoder=is_encoder_decoder)


class LongNetEncoderLayer(EncoderLayer):
    """An ``EncoderLayer`` with dilated attention."""

    def build_self_attention(self, embed_dim: int, args: Any) -> nn.Module:
        """Dilated self-attention."""
        return attention_of(args, embed_dim, args.encoder_attention_heads, DilatedAttention)


class LongNetEncoder(Encoder):
    """An ``Encoder`` of such layers."""

    def build_encoder_layer(
        self, args: Any, depth: int, is_moe_layer: bool = False, is_encoder_decoder: bool = False
    ) -> nn.Module:
        """One layer."""
        return LongNetEncoderLayer(args, depth, is_moe_layer=is_moe_layer, is_encoder_decoder=is_encoder_decoder)
