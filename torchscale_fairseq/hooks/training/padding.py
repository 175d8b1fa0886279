"""Knowing where a batch has padding without asking the device, where the host had the batch before."""

from typing import Any

from torch import Tensor

from torchscale_fairseq.core.ops.masks import Padding, know_padding
from torchscale_fairseq.core.ops.positions import padding_of

TOKENS = ("src_tokens", "prev_output_tokens")


def note_padding(on_host: Any, on_device: Any, pad: int) -> None:
    """Remember of a batch's token tensors where they have padding.

    Args:
        on_host, on_device: the same batch of fairseq's; anything but a dictionary is left alone.
        pad: the token.
    """
    if not isinstance(on_host, dict):
        return
    for name in TOKENS:
        tokens = on_host.get("net_input", {}).get(name)
        if tokens is not None:
            on_device["net_input"][name].noted_padding = padding_of(tokens == pad)


def is_free_of_padding(batch: Any) -> bool:
    """Whether a batch on the device is known to have no padding, in any of its token tensors; images have none."""
    inputs = batch.get("net_input", {})
    tokens = [inputs[name] for name in TOKENS if inputs.get(name) is not None]
    return bool(tokens or isinstance(inputs.get("patches"), Tensor)) and all(map(has_no_padding, tokens))


def padding_mask(tokens: Tensor, pad: int) -> Tensor | None:
    """True for padding, shaped like tokens; None if there is known to be none."""
    noted = _noted(tokens)
    if noted is None:
        return tokens.eq(pad)
    return know_padding(tokens.eq(pad), noted) if noted.somewhere else None


def has_no_padding(tokens: Tensor) -> bool:
    """Whether a tensor of tokens is known to have no padding."""
    return _noted(tokens) == Padding()


def note_no_padding(tokens: Tensor) -> Tensor:
    """Remember that a tensor of tokens has no padding. Returns it."""
    tokens.noted_padding = Padding()  # type: ignore[attr-defined]
    return tokens


def _noted(tokens: Tensor) -> Padding | None:
    return getattr(tokens, "noted_padding", None)
