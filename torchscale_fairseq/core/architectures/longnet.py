"""LongNet: encoder and decoder with dilated attention instead of self-attention.

"LongNet: Scaling Transformers to 1,000,000,000 Tokens", arXiv:2307.02486.
"""

from torch import nn

from ..config import DecoderConfig, EncoderConfig
from .decoder import Decoder
from .encoder import Encoder


class LongNetEncoder(Encoder):
    """An ``Encoder`` whose config must say how its attention is dilated.

    Arguments as for ``Encoder``, which builds the same from the same config.

    Raises:
        ValueError: the config has no segment_length.
    """

    def __init__(
        self,
        config: EncoderConfig,
        embed_tokens: nn.Embedding | None = None,
        embed_positions: nn.Module | None = None,
        output_projection: nn.Module | None = None,
    ):
        _check(config, type(self).__name__)
        super().__init__(config, embed_tokens, embed_positions, output_projection)


class LongNetDecoder(Decoder):
    """A ``Decoder`` whose config must say how its attention is dilated.

    Arguments as for ``Decoder``, which builds the same from the same config. While decoding, a layer keeps at most
    ceil(segment_length / dilated_ratio) keys and values per branch and head, however long the text is.

    Raises:
        ValueError: the config has no segment_length.
    """

    def __init__(
        self,
        config: DecoderConfig,
        embed_tokens: nn.Embedding | None = None,
        embed_positions: nn.Module | None = None,
        output_projection: nn.Module | None = None,
    ):
        _check(config, type(self).__name__)
        super().__init__(config, embed_tokens, embed_positions, output_projection)


def _check(config: EncoderConfig | DecoderConfig, name: str) -> None:
    if not config.segment_lengths:
        raise ValueError(
            f"{name} needs segment_length and dilated_ratio in its config, such as '[2048,4096]' and '[1,2]'."
        )
