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


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_exporting_now() -> bool:
    """torch.compile calls this instead of tracing it, since torch 2.11 traces ``is_exporting`` as true."""
    return torch.compiler.is_exporting()


_is_exporting = _is_exporting_now if hasattr(torch.compiler, "is_exporting") else torch.compiler.is_compiling
"""Before torch 2.7 the two cannot be told apart."""


def marked(mask: Tensor | None) -> Tensor | None:
    """The mask, or None if it marks nothing; waits for the device, except for ``empty_mask``. While tensors have no
    values, the mask."""
    if mask is None or _is_known_to_be_empty(mask):
        return None
    return mask if is_traced() or mask.any() else None


def empty_mask(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A mask of False everywhere, of which ``marked`` knows that until it is changed."""
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    if not (torch.compiler.is_compiling() or torch.jit.is_tracing() or mask.is_inference()):
        mask.empty_version = mask._version  # type: ignore[attr-defined]
    return mask


def _is_known_to_be_empty(mask: Tensor) -> bool:
    version = getattr(mask, "empty_version", None)
    return version is not None and version == int(mask._version)
