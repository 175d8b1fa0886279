"""Model FLOPs of a training step: the operations in the definition of a model, however it is computed.

A matrix costs two FLOPs per entry and token in the forward pass and four in the backward; a causal model needs half of
attention's scores. Recomputation, padding, normalisation, activations and embeddings do not count. The utilisation
that follows is that of PaLM (arXiv:2204.02311, appendix B).
"""

from dataclasses import dataclass
from typing import Any

from .config import DilatedOptions, RetentionSide, RetNetConfig

BACKWARD_TOO = 3
"""Forward and backward relative to the forward pass."""


@dataclass(frozen=True)
class Load:
    """The input of one side of a model in one step."""

    lengths: tuple[int, ...]
    """Length of the sequences, in tokens."""

    @property
    def tokens(self) -> int:
        """In all sequences."""
        return sum(self.lengths)

    @property
    def squares(self) -> int:
        """Pairs of tokens of a sequence."""
        return sum(length**2 for length in self.lengths)


def training_flops(
    config: Any,
    *,
    encoder: Load | None = None,
    decoder: Load | None = None,
    predictions: int,
    pairs: int = 0,
    frames: int = 0,
) -> float:
    """Model FLOPs of forward and backward.

    Args:
        config: of the core.
        encoder, decoder: what the sides get; None for a side that the model lacks.
        predictions: tokens for which scores of the whole vocabulary are computed.
        pairs: sum over sequences of source length times target length, where both sides exist.
        frames: of speech, before convolutions shorten them.
    """
    forward, width = 2.0 * _convolutions(config, frames) if frames else 0.0, 0
    if encoder is not None:
        width = config.encoder_embed_dim
        forward += 2 * encoder.tokens * config.encoder_layers * 4 * width**2
        forward += 4 * width * config.encoder_layers * _attended(config, encoder)
        forward += 2 * encoder.tokens * _feed_forward(config, "encoder")
    if decoder is not None:
        layers, source, width = config.decoder_layers, width, config.decoder_embed_dim
        forward += layers * (_retention(config, decoder) if retains(config) else _causal_attention(config, decoder))
        forward += 2 * decoder.tokens * _feed_forward(config, "decoder")
        if encoder is not None:
            forward += layers * (
                4 * decoder.tokens * width**2 + 4 * encoder.tokens * source * width + 4 * width * pairs
            )
    forward += 2 * predictions * width * max(config.vocab_size, 0)
    return BACKWARD_TOO * forward


def _convolutions(config: Any, frames: int) -> float:
    """Products of the convolutions that shorten a number of frames of speech."""
    inner, sizes = config.conv_channels, config.kernel_sizes
    inputs = [config.input_features] + [inner // 2] * (len(sizes) - 1)
    outputs = [inner] * (len(sizes) - 1) + [2 * config.encoder_embed_dim]
    layers = enumerate(zip(inputs, outputs, sizes, strict=True), 1)
    return sum(frames / 2**depth * size * before * after for depth, (before, after, size) in layers)


def retains(config: Any) -> bool:
    """Whether the decoder has retention instead of self-attention."""
    return isinstance(config, RetentionSide)


def _causal_attention(config: Any, load: Load) -> float:
    """Per layer, with its projections."""
    width = config.decoder_embed_dim
    return 8 * load.tokens * width**2 + 4 * width * _attended(config, load) / 2


def _attended(config: Any, load: Load) -> float:
    """Pairs of tokens that attention without a mask looks at: all, or with dilated attention (LongNet,
    arXiv:2307.02486, sec. 2.2), per branch those of the same segment among every ratio-th token."""
    if not isinstance(config, DilatedOptions) or not config.segment_lengths:
        return load.squares
    branches = zip(config.segment_lengths, config.dilation_ratios, strict=True)
    return sum(n * min(n, segment) / ratio**2 for segment, ratio in branches for n in load.lengths)


def _retention(config: Any, load: Load) -> float:
    """Per layer, with its projections, in the cheaper of the parallel and the recurrent form."""
    width, values, heads = config.decoder_embed_dim, config.decoder_value_embed_dim, config.decoder_retention_heads
    parallel = 2 * (width + values) * load.squares / 2
    recurrent = 4 * load.tokens * width * values / heads
    return 2 * load.tokens * (2 * width**2 + 3 * width * values) + min(parallel, recurrent)


def _feed_forward(config: Any, side: str) -> int:
    """Entries of the matrices that a token meets in all feed-forward networks of a side."""
    width, inner, layers = (getattr(config, f"{side}_{name}") for name in ("embed_dim", "ffn_embed_dim", "layers"))
    matrices = 3 if isinstance(config, RetNetConfig) or config.gated_ffn else 2
    freq = config.expert_freq(side)
    with_experts = layers // freq if freq else 0
    expert_inner = config.moe_expert_ffn_dim or inner
    router = width * config.moe_expert_count
    return (layers - with_experts) * matrices * width * inner + with_experts * (
        config.expert_top_k * matrices * width * expert_inner + router
    )
