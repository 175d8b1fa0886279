"""BitNet b1.58's linear layer for few rows, from packed weights as they are.

Generation multiplies each matrix by one row per text, so that reading the weights takes most of the time. Unpacking a
matrix moves some nine bytes per weight; the kernel (``ternary_linear_kernels.py``) reads 1.6 bits per weight.
"""

import torch
from torch import Tensor

from .gelu_norm import TRITON
from .quantization import LIMITS, SMALLEST_SCALE

if TRITON:
    from .ternary_linear_kernels import multiply

MOST_ROWS = 16
"""Rows up to which the kernel is used. Each row decodes the weights again, so that many take longer than to unpack."""
WIDEST = 16384
"""Widest rows that a program holds in registers."""


def ternary_linear(x: Tensor, norm: Tensor, eps: float, packed: Tensor, scale: Tensor, recipe: str) -> Tensor:
    """RMSNorm, rounding to eight bits and the product with packed ternary weights; for inputs that have a kernel.

    Args:
        x: (..., in).
        norm: (in,), the weights of RMSNorm.
        eps: added to the mean square.
        packed: uint8, (out, bytes) of ``quantization.pack``.
        scale: (1, 1), of the weights.
        recipe: of ``quantization.quantize_activations``.

    Returns:
        (..., out), in the dtype of x; the row is normalised and rounded in float32.
    """
    low, largest = LIMITS[recipe]
    rows = x.flatten(0, -2).contiguous()
    product = multiply(rows, norm, eps, packed.contiguous(), scale, low, largest, SMALLEST_SCALE / largest)
    return product.view(*x.shape[:-1], len(packed))


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
