"""Knowing whether a batch has padding without asking the device, where the host had the batch before."""

from typing import Any

from torch import Tensor

TOKENS = ("src_tokens", "prev_output_tokens")


def note_padding(on_host: Any, on_device: Any, pad: int) -> None:
    """Remember of a batch's token tensors which have no padding.

    Args:
        on_host, on_device: the same batch of fairseq's; anything but a dictionary is left alone.
        pad: the token.
    """
    if not isinstance(on_host, dict):
        return
    for name in TOKENS:
        tokens = on_host.get("net_input", {}).get(name)
        if tokens is not None and not (tokens == pad).any():
            on_device["net_input"][name].has_no_padding = True


def is_free_of_padding(batch: Any) -> bool:
    """Whether a batch on the device is known to have no padding, in any of its token tensors."""
    inputs = batch.get("net_input", {})
    tokens = [inputs[name] for name in TOKENS if inputs.get(name) is not None]
    return bool(tokens) and all(getattr(t, "has_no_padding", False) for t in tokens)


def padding_mask(tokens: Tensor, pad: int) -> Tensor | None:
    """True for padding, shaped like tokens; None if there is known to be none."""
    return None if getattr(tokens, "has_no_padding", False) else tokens.eq(pad)
