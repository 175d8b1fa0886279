"""GELU followed by LayerNorm, as SubLN has them between the two projections of a feed-forward network.

Magneto (arXiv:2210.06423, sec. 2.1) normalises the activations, which are four times as wide as the model. Memory
limits both operations on a GPU, so a kernel for the two reads and writes each entry once (``gelu_norm_kernels.py``).
"""

import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from .saved_parameters import as_result
from .segments import Segments

TRITON = importlib.util.find_spec("triton") is not None
if TRITON:
    from .gelu_norm_kernels import bias_gelu_norm

LARGEST_WIDTH = 8192
"""Widest rows for which the backward kernel holds a row and three sums of gradients in registers."""


def gelu_norm(x: Tensor, bias: Tensor, weight: Tensor, norm_bias: Tensor, eps: float) -> Tensor:
    """``layer_norm(gelu(x + bias)) * weight + norm_bias``.

    Args:
        x: (..., width), a projection without its bias.
        bias: (width,), of that projection.
        weight, norm_bias: (width,), of the norm.
        eps: added to the variance.
    """
    if not has_kernel(x, x.size(-1)):
        return F.layer_norm(F.gelu(x + bias), x.shape[-1:], weight, norm_bias, eps)
    y: Tensor = bias_gelu_norm(x.flatten(0, -2).contiguous(), bias, weight, norm_bias, eps)[0]
    return y.view(x.shape)


def grouped_gelu_norm(
    x: Tensor, bias: Tensor, weight: Tensor, norm_bias: Tensor, eps: float, segments: Segments
) -> Tensor:
    """``gelu_norm`` of rows (rows, width) that have a kernel, with the parameters (groups, width) of their groups."""
    parameters = [as_result(parameter) for parameter in (bias, weight, norm_bias)]
    y: Tensor = bias_gelu_norm(x.contiguous(), *parameters, eps, segments.ends, segments.group)[0]
    return y


def has_kernel(x: Tensor, width: int) -> bool:
    """Whether there is a kernel for a projection of x to this width: in half precision, on a GPU."""
    return (
        TRITON
        and x.is_cuda
        and x.dtype in (torch.float16, torch.bfloat16)
        and width <= LARGEST_WIDTH
        and x.numel() > 0
        and not torch.is_autocast_enabled("cuda")
    )
