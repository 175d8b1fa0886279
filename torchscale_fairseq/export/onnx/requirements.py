"""Which models become ONNX graphs."""

from collections.abc import Iterator
from typing import Any

from torchscale_fairseq.core.config import (
    BEiT3Config,
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    LongViTConfig,
    RetNetConfig,
    RetNetEncoderDecoderConfig,
)
from torchscale_fairseq.core.errors import InputError

TAKEN = (
    EncoderConfig,
    DecoderConfig,
    RetNetConfig,
    EncoderDecoderConfig,
    RetNetEncoderDecoderConfig,
    BEiT3Config,
    LongViTConfig,
)


def refuse(config: Any) -> None:
    """Raise InputError unless the model that a config of the core describes can be a graph."""
    if type(config) not in TAKEN:
        name = type(config).__name__.removesuffix("Config")
        raise InputError(f"export onnx does not take a {name}; write it with torchscale-fairseq convert to-safetensors")
    reason = next(_reasons(config), None)
    if reason is not None:
        raise InputError(f"ONNX cannot hold {reason}; use torchscale-fairseq export hf")


def _reasons(config: Any) -> Iterator[str]:
    if config.has_experts:
        yield "experts (--moe-freq): which of a graph's operations run cannot depend on the router's choice"
    if getattr(config, "segment_lengths", ()) and not isinstance(config, LongViTConfig):
        yield "dilated attention (--segment-length) over text: the number of segments depends on the length"
