"""BitNet b1.58's linear layer for few rows, from packed weights as they are.

Generation multiplies each matrix by one row per text, so that reading the weights takes most of the time. Unpacking a
matrix moves some nine bytes per weight; the kernel (``ternary_linear_kernels.py``) reads 1.6 bits per weight.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .gelu_norm import TRITON
from .quantization import LIMITS, SMALLEST_SCALE

if TRITON:
    from .ternary_linear_kernels import multiply_ternary

MOST_ROWS = 16
"""Rows up to which the kernel is used. Each row decodes the weights again, so that many take longer than to unpack."""
WIDEST = 16384
"""Widest rows that a program holds in registers."""


class TernaryLinear(NamedTuple):
    """Parameters of one layer."""

    norm: Tensor
    """(in,), the weights of RMSNorm."""
    packed: Tensor
    """uint8, (out, bytes) of ``quantization.pack``."""
    scale: Tensor
    """(1, 1), of the weights."""


def ternary_linear(x: Tensor, layers: Sequence[TernaryLinear], eps: float, recipe: str) -> tuple[Tensor, ...]:
    """RMSNorm, rounding to eight bits and the product with packed ternary weights; for inputs that have a kernel.

    Args:
        x: (..., in).
        layers: up to ``MOST_LAYERS`` of one size, which one launch serves.
        eps: added to the mean square.
        recipe: of ``quantization.quantize_activations``.

    Returns:
        (..., out) of each layer, in the dtype of x; rows are normalised and rounded in float32.
    """
    low, largest = LIMITS[recipe]
    rows, norms = x.flatten(0, -2).contiguous(), [layer.norm for layer in layers]
    packed, scales = [layer.packed.contiguous() for layer in layers], [layer.scale for layer in layers]
    products: Tensor = multiply_ternary(rows, norms, packed, scales, eps, low, largest, SMALLEST_SCALE / largest)
    return products.view(len(layers), *x.shape[:-1], -1).unbind()


def has_kernel(x: Tensor, *parameters: Tensor) -> bool:
    """Whether there is a kernel for an input: few rows on a GPU, without gradients.

    Args:
        x: (..., in).
        parameters: that gradients would be for.
    """
    return (
        TRITON
        and x.is_cuda
        and x.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and 0 < x.shape[:-1].numel() <= MOST_ROWS
        and x.size(-1) <= WIDEST
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *parameters)))
        and not torch.is_autocast_enabled("cuda")
    )
