"""The options of every architecture: declared once, typed, documented and checked on construction.

Field names are TorchScale's. A field that is ``None`` is decided by the others; the properties below the
fields give the decision, so that ``dataclasses.replace`` can change any field later.
"""

from .architectures import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from .dilated import DilatedOptions
from .experts import EXPERT_OPTIONS, ExpertOptions
from .images import BEiT3Config, ImageOptions, LongViTConfig, ViTConfig
from .option import Config
from .retention import RetentionSide, RetNetConfig, RetNetEncoderDecoderConfig
from .slides import SlideEncoderConfig
from .speech import LongNetSpeechConfig, RetNetSpeechConfig, SpeechConfig, SpeechOptions
from .transformer import TransformerConfig

__all__ = [
    "EXPERT_OPTIONS",
    "BEiT3Config",
    "Config",
    "DecoderConfig",
    "DilatedOptions",
    "EncoderConfig",
    "EncoderDecoderConfig",
    "ExpertOptions",
    "ImageOptions",
    "LongNetSpeechConfig",
    "LongViTConfig",
    "RetNetConfig",
    "RetNetEncoderDecoderConfig",
    "RetNetSpeechConfig",
    "RetentionSide",
    "SlideEncoderConfig",
    "SpeechConfig",
    "SpeechOptions",
    "TransformerConfig",
    "ViTConfig",
]
