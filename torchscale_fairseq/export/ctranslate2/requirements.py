"""Which translation models CTranslate2 can compute."""

from collections.abc import Iterator
from typing import Any

from torchscale_fairseq.core.config import EncoderDecoderConfig, RetNetEncoderDecoderConfig
from torchscale_fairseq.core.errors import InputError


def refuse(config: Any) -> None:
    """Raise InputError unless CTranslate2's layers express the model that a config of the core describes."""
    if not isinstance(config, EncoderDecoderConfig):
        raise InputError(
            "export ctranslate2 takes translation models (mt_*); torchscale-fairseq export hf takes the others"
        )
    lacks = ", ".join(_lacks(config))
    if lacks:
        raise InputError(
            f"CTranslate2's Transformer has no {lacks}; train mt_deepnorm, mt_swiglu or mt_base for it, or use "
            "torchscale-fairseq export hf"
        )


def _lacks(config: EncoderDecoderConfig) -> Iterator[str]:
    if isinstance(config, RetNetEncoderDecoderConfig):
        yield "retention"
    if config.expert_freq("encoder") or config.expert_freq("decoder"):
        yield "experts (--moe-freq)"
    if config.uses_subln and config.bitnet is None:
        yield "second norm within a sublayer (SubLN)"
    if config.bitnet is not None:
        yield "BitNet layers (--bitnet)"
    if config.xpos_rel_pos:
        yield "xPos (--xpos-rel-pos)"
    if config.multiway:
        yield "multiway layers"
    if config.blockwise_causal_window:
        yield "causal blocks (--blockwise-causal-window)"
    if config.has_relative_bias and config.torchscale_compatible:
        yield "relative bias as --torchscale-compatible computes it"
