"""The encoder of speech: features or raw audio, convolutions, and the layers of ``Encoder``."""

from typing import Any

import torch
from torch import Tensor, nn

from ..config.speech import LongNetSpeechConfig, RetNetSpeechConfig, SpeechConfig
from ..layers.subsampler import ConvolutionalSubsampler, frame_padding
from ..ops.ctc_prefix import masked_log_probs
from ..ops.filterbank import kaldi_filterbank, window_samples
from .encoder import Encoder

AnySpeechConfig = SpeechConfig | LongNetSpeechConfig | RetNetSpeechConfig
FULL_SCALE = 2**15
"""Amplitude at full scale in 16-bit samples, from which Kaldi computes its features."""


class SpeechEncoder(Encoder):
    """An ``Encoder`` of speech, to whose output a decoder attends.

    "fairseq S2T: Fast Speech-to-Text Modeling with fairseq", arXiv:2010.05171, has its convolutions.

    Args:
        config: the options; ``vocab_size`` is the number of labels of CTC.
    """

    config: AnySpeechConfig

    def __init__(self, config: AnySpeechConfig):
        super().__init__(config, is_encoder_decoder=True)
        width = config.encoder_embed_dim
        self.subsample = ConvolutionalSubsampler(
            config.input_features, config.conv_channels, width, config.kernel_sizes
        )
        self.ctc_proj = nn.Linear(width, config.vocab_size) if config.ctc else None

    def build_positions(self) -> nn.Module | None:
        """Absolute positions after the config."""
        return self.factory.position_embedding()

    def _token_embedding(self) -> None:
        """Speech has no tokens to embed."""

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, **arguments: Any) -> dict[str, Any]:  # type: ignore[override]
        """Encode a batch.

        Args:
            src_tokens: (batch, frames, features), or (batch, samples) if the config has a sample rate.
            src_lengths: (batch,), frames or samples of each row; what lies behind is not read.
            arguments: of ``Encoder.forward``.

        Returns:
            As ``Encoder.forward``, and ``ctc_log_probs`` (batch, shorter frames, labels) in float32 if the config has
            CTC.
        """
        if self.config.sample_rate:
            src_tokens, src_lengths = self._features(src_tokens, src_lengths)
        x, lengths = self.subsample(src_tokens, src_lengths)
        padding = frame_padding(lengths, x.size(1))
        encoded = super().forward(None, padding, token_embeddings=x, **arguments)
        if self.ctc_proj is not None:
            encoded["ctc_log_probs"] = masked_log_probs(self.ctc_proj(encoded["encoder_out"]), padding)
        return encoded

    def _features(self, waveforms: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel features with mean 0 and variance 1 in each band over a row's frames, and their number."""
        rate = self.config.sample_rate
        features = kaldi_filterbank(waveforms.float() * FULL_SCALE, rate, self.config.input_features)
        size, shift = window_samples(rate)
        lengths = ((samples - size).div(shift, rounding_mode="floor") + 1).clamp_min(0)
        return normalize_rows(features, lengths).to(next(self.parameters()).dtype), lengths


def normalize_rows(features: Tensor, lengths: Tensor) -> Tensor:
    """Features with mean 0 and variance 1 over the frames of each row.

    Args:
        features: (batch, frames, bands).
        lengths: (batch,), frames of each row.
    """
    padding = frame_padding(lengths, features.size(1)).unsqueeze(-1)
    count = lengths.clamp_min(1)[:, None, None]
    centred = (features - features.masked_fill(padding, 0.0).sum(1, keepdim=True) / count).masked_fill(padding, 0.0)
    variance = centred.square().sum(1, keepdim=True) / count
    return centred * torch.rsqrt(variance.clamp_min(1e-10))
