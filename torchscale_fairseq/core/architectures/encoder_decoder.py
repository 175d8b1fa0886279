"""Encoder and decoder together (translation)."""

from typing import Any

from torch import Tensor, nn

from ..config import EncoderDecoderConfig, RetNetEncoderDecoderConfig
from .decoder import Decoder
from .encoder import Encoder
from .retnet import RetNetDecoder


class EncoderDecoder(nn.Module):
    """An ``Encoder`` and a ``Decoder``, or a ``RetNetDecoder``, that attends to it.

    Args:
        config: the options; their class says which decoder it is.
        encoder_embed_tokens, encoder_embed_positions, decoder_embed_tokens, decoder_embed_positions,
        output_projection: as for ``Encoder`` and ``Decoder``; with share_all_embeddings the encoder's token
            embedding serves both sides and the output.
    """

    def __init__(
        self,
        config: EncoderDecoderConfig,
        encoder_embed_tokens: nn.Embedding | None = None,
        encoder_embed_positions: nn.Module | None = None,
        decoder_embed_tokens: nn.Embedding | None = None,
        decoder_embed_positions: nn.Module | None = None,
        output_projection: nn.Module | None = None,
    ):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, encoder_embed_tokens, encoder_embed_positions, is_encoder_decoder=True)
        if config.share_all_embeddings and decoder_embed_tokens is None:
            decoder_embed_tokens = self.encoder.embed_tokens
        self.decoder: Decoder | RetNetDecoder
        if isinstance(config, RetNetEncoderDecoderConfig):
            self.decoder = RetNetDecoder(config, decoder_embed_tokens, output_projection, is_encoder_decoder=True)
        else:
            self.decoder = Decoder(
                config, decoder_embed_tokens, decoder_embed_positions, output_projection, is_encoder_decoder=True
            )

    def forward(
        self,
        src_tokens: Tensor,
        prev_output_tokens: Tensor,
        return_all_hiddens: bool = False,
        features_only: bool = False,
        encoder_padding_mask: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Decode prev_output_tokens (batch, target), given src_tokens (batch, source); returns as ``Decoder`` does."""
        encoder_out = self.encoder(src_tokens, encoder_padding_mask, return_all_hiddens=return_all_hiddens)
        return self.decoder(
            prev_output_tokens,
            self_attn_padding_mask=self_attn_padding_mask,
            encoder_out=encoder_out,
            features_only=features_only,
            return_all_hiddens=return_all_hiddens,
        )
