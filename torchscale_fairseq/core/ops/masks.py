"""Masks that callers give, and the two questions about their content that decide how much is computed."""

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
    if hasattr(torch.compiler, "is_exporting"):
        return torch.compiler.is_exporting()
    return torch.compiler.is_compiling()  # before torch 2.7, which cannot tell the two apart


def marked(mask: Tensor | None) -> Tensor | None:
    """The mask, or None if it marks nothing. While tensors have no values, the mask."""
    return mask if mask is not None and (is_traced() or mask.any()) else None
