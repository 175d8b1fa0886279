"""The core's encoder behind fairseq's interface."""

from typing import Any

from fairseq.models import FairseqEncoder
from torch import Tensor, nn

from torchscale_fairseq.core.architectures.encoder import Encoder
from torchscale_fairseq.core.config import EncoderConfig, EncoderDecoderConfig
from torchscale_fairseq.core.ops.positions import absolute_positions
from torchscale_fairseq.core.parallel.sequence import SequenceSlice
from torchscale_fairseq.hooks.training.padding import padding_mask

from ._dictionary import upgrade_state_dict


class TextEncoder(FairseqEncoder, Encoder):
    """A masked language model's encoder, or the source side of a translation model.

    Args:
        config: the options.
        dictionary: fairseq's.
        embed_tokens: its embedding.
        output_projection: from features to logits; none in a translation model.
    """

    def __init__(
        self,
        config: EncoderConfig | EncoderDecoderConfig,
        dictionary: Any,
        embed_tokens: nn.Embedding,
        output_projection: nn.Module | None = None,
    ):
        both = isinstance(config, EncoderDecoderConfig)
        Encoder.__init__(self, config, embed_tokens, None, output_projection, is_encoder_decoder=both)
        self.dictionary = dictionary

    def build_positions(self) -> nn.Module | None:
        """Absolute positions after the config."""
        return self.factory.position_embedding()

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
        features_only: bool = False,
        sequence_slice: SequenceSlice | None = None,
        document_starts: Tensor | None = None,
    ) -> dict[str, Any]:
        """Encode (batch, seq) tokens; padding, on either side, is read off them. With --seq-parallel, sequence_slice
        says which slice of longer rows they are; with --pack-documents, document_starts (batch, seq) where documents
        begin."""
        padding = padding_mask(src_tokens, self.dictionary.pad())
        positions = None
        if padding is not None and self.config.torchscale_compatible and document_starts is None:
            positions = absolute_positions(padding)  # which leave it out
        return Encoder.forward(
            self,
            src_tokens,
            padding,
            return_all_hiddens=return_all_hiddens,
            token_embeddings=token_embeddings,
            features_only=features_only,
            positions=positions,
            sequence_slice=sequence_slice,
            document_starts=document_starts,
        )

    def max_positions(self) -> int:
        """Longest sequence in tokens."""
        return self.position_limit

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> dict[str, Any]:
        """Adapt a checkpoint before it is loaded."""
        upgrade_state_dict(state_dict, name, self.dictionary)
        return state_dict
