"""Options of models that read speech."""

from dataclasses import dataclass

from ..ops.filterbank import frame_count
from .architectures import EncoderDecoderConfig
from .dilated import DilatedOptions
from .option import Config, check_range, option
from .retention import RetNetEncoderDecoderConfig

EXAMPLE = "5,5"


@dataclass(frozen=True, kw_only=True)
class SpeechOptions(Config):
    """Options of encoders that read speech, whose tokens are frames of features."""

    conv_kernel_sizes: str = option(
        EXAMPLE,
        "kernel sizes in frames, separated by commas, of the convolutions before the encoder, each of which halves the "
        "number of frames",
    )
    conv_channels: int = option(1024, "channels between the convolutions before the encoder")
    input_features: int = option(80, "features of a frame", core_only=True)
    sample_rate: int = option(0, "samples per second of raw audio; 0: the input is features", core_only=True)
    ctc: bool = option(False, "also project the encoder's output to labels, for CTC", core_only=True)
    share_all_embeddings: bool = option(False, "has no use, since speech has no vocabulary", core_only=True)
    max_source_positions: int = option(6000, "maximum length of the source in frames", core_only=True)

    def _check(self) -> None:
        super()._check()
        for name in ("conv_channels", "input_features"):
            check_range(name, getattr(self, name), 1)
        if self.conv_channels % 2:
            raise self._error(
                "conv_channels",
                "{conv_channels()} must be even, since gated linear units halve it",
                {"conv_channels": self.conv_channels + 1},
            )
        if not self.kernel_sizes or any(size % 2 == 0 for size in self.kernel_sizes):
            raise self._error(
                "conv_kernel_sizes",
                "{conv_kernel_sizes()} must be odd whole numbers separated by commas",
                {"conv_kernel_sizes": EXAMPLE},
            )
        if self.share_all_embeddings:
            raise self._error(
                "share_all_embeddings",
                "{share_all_embeddings} has no use in a model that reads speech, which has no vocabulary",
                {"share_all_embeddings": None},
            )

    def frames(self, length: int) -> int:
        """Frames of a source of this length, which is in samples if it is raw audio."""
        return frame_count(length, self.sample_rate) if self.sample_rate else length

    def shortened(self, frames: int) -> int:
        """Length of the encoder's input for a number of frames."""
        for _ in self.kernel_sizes:
            frames = (frames + 1) // 2
        return frames

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        """Frames per kernel, one entry per convolution; none if conv_kernel_sizes is no such list."""
        words = self.conv_kernel_sizes.split(",")
        return tuple(map(int, words)) if all(word.strip().isdecimal() for word in words) else ()


@dataclass(frozen=True, kw_only=True)
class SpeechConfig(SpeechOptions, EncoderDecoderConfig):
    """Options of ``SpeechEncoder`` and the ``Decoder`` that attends to it."""


@dataclass(frozen=True, kw_only=True)
class LongNetSpeechConfig(SpeechOptions, EncoderDecoderConfig, DilatedOptions):
    """Options of a speech model with dilated attention in the encoder."""


@dataclass(frozen=True, kw_only=True)
class RetNetSpeechConfig(SpeechOptions, RetNetEncoderDecoderConfig):
    """Options of ``SpeechEncoder`` and the ``RetNetDecoder`` that attends to it."""
