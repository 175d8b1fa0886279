"""The core's decoders behind fairseq's interface."""

from typing import Any

from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor, nn

from torchscale_fairseq.core.architectures.decoder import Decoder
from torchscale_fairseq.core.architectures.retnet import RetNetDecoder
from torchscale_fairseq.core.architectures.spec import AnyRetNetConfig
from torchscale_fairseq.core.config import DecoderConfig, EncoderDecoderConfig
from torchscale_fairseq.core.parallel.sequence import SequenceSlice
from torchscale_fairseq.hooks.training.padding import padding_mask

from ._dictionary import upgrade_state_dict


class DecoderAdapter(FairseqIncrementalDecoder):
    """fairseq's interface of a decoder; a subclass is also the core's decoder that it names."""

    core: Any
    """The class in the core."""
    position_limit: int

    def _adapt(self, dictionary: Any) -> None:
        """Called when the core's part is built."""
        self.dictionary = dictionary
        self.adaptive_softmax = None  # both asked for by FairseqDecoder.get_normalized_probs
        self.onnx_trace = False

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, Any] | None = None,
        incremental_state: dict[Any, Any] | None = None,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        src_lengths: Tensor | None = None,
        token_embeddings: Tensor | None = None,
        sequence_slice: SequenceSlice | None = None,
        document_starts: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Decode (batch, seq) tokens; padding, on either side, is read off them. With --seq-parallel,
        sequence_slice says which slice of longer rows they are; with --pack-documents, document_starts (batch, seq)
        where documents begin."""
        return self.core.forward(
            self,
            prev_output_tokens,
            self_attn_padding_mask=padding_mask(prev_output_tokens, self.dictionary.pad()),
            encoder_out=encoder_out,
            incremental_state=incremental_state,
            features_only=features_only,
            return_all_hiddens=return_all_hiddens,
            token_embeddings=token_embeddings,
            **({} if sequence_slice is None else {"sequence_slice": sequence_slice}),
            **({} if document_starts is None else {"document_starts": document_starts}),
        )

    def extract_features(self, prev_output_tokens: Tensor, **arguments: Any) -> tuple[Tensor, dict[str, Any]]:
        """Call ``forward`` without the output projection."""
        return self.forward(prev_output_tokens, **arguments, features_only=True)

    def output_layer(self, features: Tensor, **_: Any) -> Tensor:
        """Features to logits."""
        return self.core.output_layer(self, features)

    def reorder_incremental_state(self, incremental_state: dict[Any, Any], new_order: Tensor) -> None:
        """Follow beam search."""
        self.core.reorder_incremental_state(self, incremental_state, new_order)

    def reorder_incremental_state_scripting(self, incremental_state: dict[Any, Any], new_order: Tensor) -> None:
        """Reorder the state under the name by which beam search calls it. There is one state for the whole decoder, so
        that no module needs to be searched for its own."""
        self.reorder_incremental_state(incremental_state, new_order)

    def max_positions(self) -> int:
        """Longest sequence in tokens."""
        return self.position_limit

    def make_generation_fast_(self, **_: Any) -> None:
        """Called by fairseq before it generates. On a GPU steps become CUDA graphs where they can."""
        self.core.record_steps(self)

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> dict[str, Any]:
        """Adapt a checkpoint before it is loaded."""
        upgrade_state_dict(state_dict, name, self.dictionary)
        return state_dict


class TextDecoder(DecoderAdapter, Decoder):  # type: ignore[misc]
    """A language model, or the target side of a translation model.

    Args:
        config: the options.
        dictionary: fairseq's.
        embed_tokens: its embedding.
    """

    core = Decoder

    def __init__(self, config: DecoderConfig | EncoderDecoderConfig, dictionary: Any, embed_tokens: nn.Embedding):
        both = isinstance(config, EncoderDecoderConfig)
        Decoder.__init__(self, config, embed_tokens, is_encoder_decoder=both)
        self._adapt(dictionary)

    def build_positions(self) -> nn.Module | None:
        """Absolute positions after the config."""
        return self.factory.position_embedding()


class RetNetTextDecoder(DecoderAdapter, RetNetDecoder):  # type: ignore[misc]
    """A fairseq decoder with retention. Arguments as for TextDecoder."""

    core = RetNetDecoder

    def __init__(self, config: AnyRetNetConfig, dictionary: Any, embed_tokens: nn.Embedding):
        both = isinstance(config, EncoderDecoderConfig)
        RetNetDecoder.__init__(self, config, embed_tokens, is_encoder_decoder=both)
        self._adapt(dictionary)
