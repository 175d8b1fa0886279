"""TorchScale's architectures as a plugin for stock fairseq.

The names below belong to the core, which needs torch alone; they are imported on first use.
For fairseq, pass this folder as ``--user-dir`` (see ``plugin.py``).
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers, the names of _HOME once more
    from .core.architectures.beit3 import BEiT3 as BEiT3
    from .core.architectures.decoder import Decoder as Decoder
    from .core.architectures.encoder import Encoder as Encoder
    from .core.architectures.encoder_decoder import EncoderDecoder as EncoderDecoder
    from .core.architectures.longnet import LongNetDecoder as LongNetDecoder
    from .core.architectures.longnet import LongNetEncoder as LongNetEncoder
    from .core.architectures.longvit import LongViT as LongViT
    from .core.architectures.longvit import LongViTClassifier as LongViTClassifier
    from .core.architectures.masked_image import MaskedImageModel as MaskedImageModel
    from .core.architectures.retnet import RetNetDecoder as RetNetDecoder
    from .core.architectures.slide_encoder import SlideClassifier as SlideClassifier
    from .core.architectures.slide_encoder import SlideEncoder as SlideEncoder
    from .core.architectures.vit import ViT as ViT
    from .core.architectures.vit import ViTClassifier as ViTClassifier
    from .core.config import BEiT3Config as BEiT3Config
    from .core.config import DecoderConfig as DecoderConfig
    from .core.config import EncoderConfig as EncoderConfig
    from .core.config import EncoderDecoderConfig as EncoderDecoderConfig
    from .core.config import LongViTConfig as LongViTConfig
    from .core.config import RetNetConfig as RetNetConfig
    from .core.config import RetNetEncoderDecoderConfig as RetNetEncoderDecoderConfig
    from .core.config import SlideEncoderConfig as SlideEncoderConfig
    from .core.config import ViTConfig as ViTConfig
    from .core.ops.dilated import dilated_attention as dilated_attention
    from .core.saving import load_pretrained as load_pretrained

__version__ = "0.2.0"

_HOME = {
    "EncoderConfig": "core.config",
    "DecoderConfig": "core.config",
    "EncoderDecoderConfig": "core.config",
    "BEiT3Config": "core.config",
    "LongViTConfig": "core.config",
    "RetNetConfig": "core.config",
    "RetNetEncoderDecoderConfig": "core.config",
    "SlideEncoderConfig": "core.config",
    "ViTConfig": "core.config",
    "Encoder": "core.architectures.encoder",
    "Decoder": "core.architectures.decoder",
    "EncoderDecoder": "core.architectures.encoder_decoder",
    "LongNetEncoder": "core.architectures.longnet",
    "LongNetDecoder": "core.architectures.longnet",
    "BEiT3": "core.architectures.beit3",
    "LongViT": "core.architectures.longvit",
    "LongViTClassifier": "core.architectures.longvit",
    "MaskedImageModel": "core.architectures.masked_image",
    "RetNetDecoder": "core.architectures.retnet",
    "SlideClassifier": "core.architectures.slide_encoder",
    "SlideEncoder": "core.architectures.slide_encoder",
    "ViT": "core.architectures.vit",
    "ViTClassifier": "core.architectures.vit",
    "dilated_attention": "core.ops.dilated",
    "load_pretrained": "core.saving",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*(name for name in globals() if name.startswith("__")), *__all__])
