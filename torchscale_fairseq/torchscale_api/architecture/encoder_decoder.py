"""Encoder and decoder together."""

from typing import Any

from torch import Tensor, nn

from .decoder import Decoder
from .encoder import Encoder


class EncoderDecoder(nn.Module):
    """An encoder, and a decoder that attends to its output.

    Args:
        args: an ``EncoderDecoderConfig``, or the like.
        encoder_embed_tokens, encoder_embed_positions, decoder_embed_tokens, decoder_embed_positions: embeddings.
        output_projection: from features to logits; built by default if the config has a vocabulary.
        kwargs: ignored.
    """

    def __init__(
        self,
        args: Any,
        encoder_embed_tokens: nn.Module | None = None,
        encoder_embed_positions: nn.Module | None = None,
        decoder_embed_tokens: nn.Module | None = None,
        decoder_embed_positions: nn.Module | None = None,
        output_projection: nn.Module | None = None,
        **kwargs: Any,
    ):
        super().__init__()
        self.args = args
        if args.share_all_embeddings:
            args.share_decoder_input_output_embed = True
        self.encoder = Encoder(args, encoder_embed_tokens, encoder_embed_positions, is_encoder_decoder=True, **kwargs)
        if args.share_all_embeddings and decoder_embed_tokens is None:
            decoder_embed_tokens = self.encoder.embed_tokens
        self.decoder = Decoder(
            args,
            decoder_embed_tokens,
            decoder_embed_positions,
            output_projection,
            is_encoder_decoder=True,
            **kwargs,
        )

    def forward(
        self,
        src_tokens: Tensor,
        prev_output_tokens: Tensor,
        return_all_hiddens: bool = False,
        features_only: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Decode; returns as the decoder does. ``encoder_padding_mask`` and ``self_attn_padding_mask`` hide padding."""
        encoder_out = self.encoder(
            src_tokens, kwargs.get("encoder_padding_mask"), return_all_hiddens=return_all_hiddens
        )
        decoded: tuple[Tensor, dict[str, Any]] = self.decoder(
            prev_output_tokens,
            kwargs.get("self_attn_padding_mask"),
            encoder_out=encoder_out,
            features_only=features_only,
            return_all_hiddens=return_all_hiddens,
        )
        return decoded
