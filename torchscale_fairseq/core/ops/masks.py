"""Masks that callers give, and the two questions about their content that decide how much is computed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


def as_mask(mask: Tensor | None, name: str) -> Tensor | None:
    """A mask as bool: True, or an integer other than 0, marks a position.

    Args:
        mask: bool or integers, any shape; None for no mask.
        name: of the argument, for the error.

    Raises:
        InputError: the mask holds floats, which could as well be added to scores.
    """
    if mask is None or mask.dtype == torch.bool:
        return mask
    if mask.is_floating_point() or mask.is_complex():
        raise InputError(
            f"{name} is of {mask.dtype} and must be of bool or integers, True or 1 for marked positions; give "
            f"{name}.bool()."
        )
    return mask != 0


def is_traced() -> bool:
    """Whether tensors have no values to be read, since torch.export or torch.jit.trace is at work. torch.compile reads
    them and breaks its graph there."""
    return _is_exporting() or torch.jit.is_tracing()


def _is_exporting() -> bool:
    if hasattr(torch.compiler, "_is_exporting_flag"):
        return bool(torch.compiler._is_exporting_flag)  # torch.compile of torch 2.11 takes is_exporting() for true
    return torch.compiler.is_compiling()  # before torch 2.7, which cannot tell the two apart


@dataclass(frozen=True)
class Padding:
    """Properties of a padding mask that decide how much is computed, where they are known without the device."""

    somewhere: bool = False
    """It marks something."""
    before_tokens: bool = False
    """Some real token stands right of padding."""
    inside: bool = False
    """Padding stands between real tokens of a row."""
    whole_rows: bool = False
    """Some row holds nothing else."""


def marked(mask: Tensor | None) -> Tensor | None:
    """The mask, or None if it marks nothing; waits for the device, unless that is known. While tensors have no values,
    the mask."""
    known = None if mask is None else known_padding(mask)
    if mask is None or known is not None:
        return mask if known is not None and known.somewhere else None
    return mask if is_traced() or mask.any() else None


def empty_mask(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A mask of False everywhere, of which that is known until it is changed."""
    return know_padding(torch.zeros(shape, dtype=torch.bool, device=device), Padding())


def know_padding(mask: Tensor, padding: Padding) -> Tensor:
    """Remember what a mask marks until it is changed. Returns it."""
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing() or mask.is_inference()):
        mask.known_padding = mask._version, padding  # type: ignore[attr-defined]
    return mask


def known_padding(mask: Tensor) -> Padding | None:
    """The properties of a mask, if they are known; else None."""
    version, padding = getattr(mask, "known_padding", (None, None))
    return padding if version is not None and version == int(mask._version) else None
