"""BitNet's quantisation: weights of one bit or of three values, activations of eight bits, and their storage.

BitNet, arXiv:2310.11453 (b1); "The Era of 1-bit LLMs", arXiv:2402.17764 (b1.58), and "Training Tips, Code and FAQ",
which its authors published with the code (the recipe ``faq``).
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

SCHEMES = ("b1.58", "b1")
RECIPES = ("faq", "paper")
LIMITS = {"faq": (-128, 127), "paper": (-127, 128)}
"""Least whole number of activations, and the one that the largest absolute value is scaled to, before a clip to 127."""
SMALLEST_SCALE = 1e-5
WEIGHTS_PER_BYTE = {"b1.58": 5, "b1": 8}
"""Five ternary weights have 243 states, so that a weight takes 1.6 bits."""


class Quantized(NamedTuple):
    """Whole numbers and what one of them is worth."""

    values: Tensor
    """In a floating dtype."""
    scale: Tensor
    """Broadcasts to values."""

    def real(self) -> Tensor:
        """The numbers that they stand for."""
        return self.values * self.scale


def quantize_weight(weight: Tensor, scheme: str) -> Quantized:
    """Round a weight matrix to one of few values.

    b1.58: the nearest of -1, 0, 1 times the mean absolute weight (eq. 1-3). b1: the sign of the weight less the mean,
    -1 for zero, times the mean absolute weight (eq. 1-3, 12).

    Args:
        weight: (..., out, in); each matrix has a scale of its own.
        scheme: one of ``SCHEMES``.
    """
    scale = weight.abs().mean((-2, -1), keepdim=True).clamp(min=SMALLEST_SCALE)
    if scheme == "b1.58":
        return Quantized((weight / scale).round().clamp(-1, 1), scale)
    above = weight > weight.mean((-2, -1), keepdim=True)
    return Quantized(above.to(weight.dtype) * 2 - 1, scale)


def quantize_activations(
    x: Tensor, recipe: str, *, shared_scale: bool = False, from_minimum: bool = False
) -> Quantized:
    """Round activations to eight bits by their largest absolute value.

    Args:
        x: (..., width).
        recipe: "faq" makes the largest value 127; "paper" 128, clipped to 127 (b1, eq. 4-5).
        shared_scale: one scale for all tokens, not one for each.
        from_minimum: count from the smallest value, so that all are 0 or more (b1, eq. 8-9). What is subtracted is
            lost: the paper does not add it again.
    """
    low, largest = LIMITS[recipe]
    over = tuple(range(x.dim())) if shared_scale else (-1,)
    if from_minimum:
        x = x - x.detach().amin(over, keepdim=True)
    scale = (x.detach().abs().amax(over, keepdim=True) / largest).clamp(min=SMALLEST_SCALE / largest)
    return Quantized((x / scale).round().clamp(low, 127), scale)


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """The quantised values, with the gradient of x (straight-through estimator, arXiv:1308.3432)."""
    return quantized.detach() + (x - x.detach())


def pack(values: Tensor, scheme: str) -> Tensor:
    """Whole numbers of ``quantize_weight``, (..., in), to bytes, (..., bytes); a row ends in a byte of its own."""
    per_byte = WEIGHTS_PER_BYTE[scheme]
    digits = (values + 1 if scheme == "b1.58" else (values + 1) / 2).to(torch.int32)
    digits = torch.nn.functional.pad(digits, (0, -digits.size(-1) % per_byte)).unflatten(-1, (-1, per_byte))
    return (digits * _places(scheme, values.device)).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, scheme: str, width: int, dtype: torch.dtype) -> Tensor:
    """The whole numbers again, (..., width).

    Args:
        packed: uint8, (..., bytes).
        scheme: one of ``SCHEMES``.
        width: weights in a row.
        dtype: of the result.
    """
    table = _digits(scheme, packed.device, dtype)
    return table[packed.int()].flatten(-2)[..., :width]


def packed_width(width: int, scheme: str) -> int:
    """Bytes of a row with the given number of weights."""
    return -(-width // WEIGHTS_PER_BYTE[scheme])


def _places(scheme: str, device: torch.device) -> Tensor:
    base = 3 if scheme == "b1.58" else 2
    return base ** torch.arange(WEIGHTS_PER_BYTE[scheme], dtype=torch.int32, device=device)


@cache
def _digits(scheme: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(256, weights per byte), the whole numbers in each byte. They stay on their device: CUDA graphs of decoding steps
    cannot copy from the host."""
    base = 3 if scheme == "b1.58" else 2
    digits = torch.arange(256, dtype=torch.int32, device=device)[:, None] // _places(scheme, device) % base
    return (digits - 1 if scheme == "b1.58" else digits * 2 - 1).to(dtype)
