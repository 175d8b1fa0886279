"""The configs of encoder, decoder and encoder-decoder."""

from dataclasses import dataclass

from .dilated import DilatedOptions
from .option import option
from .transformer import DecoderSide, EncoderSide


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(EncoderSide, DilatedOptions):
    """Options of ``Encoder`` and ``LongNetEncoder``."""

    share_encoder_input_output_embed: bool = option(
        False, "use one matrix as the encoder's embedding and output projection"
    )

    @property
    def shares_output_embedding(self) -> bool:
        """Whether the output projection is the embedding."""
        return self.share_encoder_input_output_embed


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(DecoderSide, DilatedOptions):
    """Options of ``Decoder`` and ``LongNetDecoder``."""

    multiway: bool = option(
        False, "build the doubled attention parameters of TorchScale's multiway decoders", core_only=True
    )

    def _check(self) -> None:
        super()._check()
        if self.segment_lengths and self.blockwise_causal_window:
            raise self._error(
                "blockwise_causal_window",
                "{blockwise_causal_window()} is for dense attention and {segment_length} for dilated attention",
                {"blockwise_causal_window": None},
                {"segment_length": None, "dilated_ratio": None},
            )
        if self.multiway and not self.torchscale_compatible:
            raise self._error(
                "multiway",
                "{multiway} has no use in a decoder, where all tokens are of one modality",
                {"torchscale_compatible": True},
                advice="to load a TorchScale decoder made with it, {}",
            )

    @property
    def has_two_modalities(self) -> bool:
        """Whether feed-forward networks are doubled."""
        return self.multiway


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(EncoderSide, DecoderSide):
    """Options of ``EncoderDecoder``."""

    share_all_embeddings: bool = option(
        False, ("use one matrix as the embeddings of both sides and the output projection; needs a joined dictionary")
    )

    def _check(self) -> None:
        super()._check()
        if self.share_all_embeddings and self.encoder_embed_dim != self.decoder_embed_dim:
            raise self._error(
                "share_all_embeddings",
                "{share_all_embeddings} needs {encoder_embed_dim()} equal to {decoder_embed_dim()}",
                {"decoder_embed_dim": self.encoder_embed_dim},
                {"share_all_embeddings": None},
            )

    @property
    def shares_output_embedding(self) -> bool:
        """Whether the output projection is the decoder's embedding."""
        return self.share_all_embeddings or self.share_decoder_input_output_embed
