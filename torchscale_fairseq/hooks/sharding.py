"""--ddp-backend fully_sharded, which is refused for the models of this package.

fairseq shards parameters through fairscale, whose last release is of 2022: it flattens the parameters that optimizers,
clipping and checkpoints here know by name, and needs CUDA. A device holds a whole model; what does not fit is spread by
experts (docs/distributed.md). fairseq's own models go fairseq's own way.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from fairseq.models import MODEL_REGISTRY

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.flops import Load, training_flops

BYTES_PER_PARAMETER = 12
"""With --memory-efficient-fp16: weights and gradients in half precision, two states of Adam in float32."""

_requested: bool | ImportError = False
"""Whether models are built to be sharded; the error, if fairscale is missing."""


def remember_request(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fsdp_enable_wrap``, inside which fairseq builds the model; fairscale may be missing until that happens."""

    @contextmanager
    def fsdp_enable_wrap(cfg: Any) -> Iterator[None]:
        global _requested
        with ExitStack() as stack:
            _requested = True
            try:
                stack.enter_context(stock(cfg))
            except ImportError as error:
                _requested = error
            try:
                yield
            finally:
                _requested = False

    return fsdp_enable_wrap


def refuse_ours(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.models.build_model``.

    Raises:
        InputError: a model of this package is to be sharded.
    """

    def build_model(cfg: Any, task: Any, from_checkpoint: bool = False) -> Any:
        arch = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
        if _requested and hasattr(MODEL_REGISTRY.get(arch), "preset"):
            raise InputError(_refusal(str(arch), len(task.source_dictionary), _memory()))
        if isinstance(_requested, ImportError):
            raise _requested
        return stock(cfg, task, from_checkpoint)

    return build_model


def _refusal(arch: str, words: int, memory: int) -> str:
    largest = largest_that_fits(arch, words, memory)
    advice = f"{largest} is the largest of its family that does" if largest else "none of its family does"
    return (
        f"--ddp-backend fully_sharded is for fairseq's own models; --arch {arch} must fit a device whole. Of the "
        f"{memory / 2**30:.0f} GiB here it takes {BYTES_PER_PARAMETER} bytes per parameter with "
        f"--memory-efficient-fp16, and activations besides; {advice}. Use --ddp-backend pytorch_ddp, with "
        "--checkpoint-activations for smaller activations, or experts (--moe-freq), which processes share out."
    )


def largest_that_fits(arch: str, words: int, memory: int) -> str | None:
    """The largest dense preset of an architecture's family that fits, before activations; None if none does.

    Args:
        arch: its name up to the first underscore is the family's.
        words: entries of the dictionary.
        memory: bytes.
    """
    sizes = {
        name: parameter_count(model.config_class(**model.preset, vocab_size=words))
        for name, model in MODEL_REGISTRY.items()
        if hasattr(model, "preset") and name.split("_")[0] == arch.split("_")[0] and not model.preset.get("moe_freq")
    }
    fitting = [name for name, count in sizes.items() if count * BYTES_PER_PARAMETER <= memory]
    return max(fitting, key=lambda name: sizes[name]) if fitting else None


def parameter_count(config: Any) -> float:
    """Entries of a dense model's matrices and embeddings: all but a fiftieth of its parameters."""
    one = Load((1,))
    sides = {side: one for side in ("encoder", "decoder") if hasattr(config, f"{side}_layers")}
    shared = getattr(config, "shares_output_embedding", False) or getattr(
        config, "share_encoder_input_output_embed", False
    )
    width = getattr(config, "decoder_embed_dim", None) or config.encoder_embed_dim
    tables = config.vocab_size * width * (len(sides) - 1 if shared else len(sides))
    return training_flops(config, **sides, predictions=1, pairs=len(sides) - 1) / 6 + tables


def _memory() -> int:
    """Bytes of the first GPU or else of this machine."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
