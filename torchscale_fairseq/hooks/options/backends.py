"""A backend that cannot serve a run (package, GPU or precision missing) is refused before the model is built."""

from collections.abc import Iterator
from typing import Any

import torch

from torchscale_fairseq.core.ops.backend import AUTO, choose
from torchscale_fairseq.core.ops.flash_attention import FlashAttn
from torchscale_fairseq.core.ops.probes import PROBES
from torchscale_fairseq.core.option_error import OptionError
from torchscale_fairseq.hooks.options.surfaces import spelt_as_typed


def check_backends(cfg: Any) -> None:
    """Refuse backends that cannot compute on the device and in the precision of a run.

    Args:
        cfg: fairseq's configuration.

    Raises:
        OptionError: with what the backend needs, and another one.
    """
    where = _device(cfg.common), _dtype(cfg.common)
    with spelt_as_typed():
        for option, wanted in _named(cfg.model):
            choose(PROBES[option].backends, PROBES[option].request(*where), wanted, option=option)
        if _is_flash_attention(cfg.model):
            refusal = FlashAttn().refusal(PROBES["attention_backend"].request(*where))
            if refusal is not None:
                condition, remedy = f"{{flash_attention}} {refusal}", {"flash_attention": None}
                raise OptionError("flash_attention", True, condition, [remedy])


def _named(model: Any) -> Iterator[tuple[str, str]]:
    for option in PROBES:
        wanted = getattr(model, option, None)
        if wanted not in (None, AUTO):
            yield option, wanted


def _is_flash_attention(model: Any) -> bool:
    """Whether TorchScale's spelling is given, which has no effect in dilated attention."""
    return bool(getattr(model, "flash_attention", False)) and not getattr(model, "segment_length", None)


def _device(common: Any) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and not common.cpu else "cpu")


def _dtype(common: Any) -> torch.dtype:
    return torch.bfloat16 if common.bf16 else torch.float16 if common.fp16 or common.amp else torch.float32
