"""TorchScale's architectures as a plugin for stock fairseq.

The names below belong to the core, which needs torch alone; they are loaded on first use.
For fairseq, pass this folder as ``--user-dir`` (see ``plugin.py``).
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "EncoderConfig": "core.config",
    "DecoderConfig": "core.config",
    "EncoderDecoderConfig": "core.config",
    "RetNetConfig": "core.config",
    "RetNetEncoderDecoderConfig": "core.config",
    "Encoder": "core.architectures.encoder",
    "Decoder": "core.architectures.decoder",
    "EncoderDecoder": "core.architectures.encoder_decoder",
    "LongNetEncoder": "core.architectures.longnet",
    "LongNetDecoder": "core.architectures.longnet",
    "dilated_attention": "core.ops.dilated",
    "BEiT3": "core.architectures.beit3",
    "BEiT3Config": "core.config",
    "LongViT": "core.architectures.longvit",
    "LongViTClassifier": "core.architectures.longvit",
    "LongViTConfig": "core.config",
    "RetNetDecoder": "core.architectures.retnet",
    "load_pretrained": "core.saving",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
