"""Products with a gate that keep what they are given for the backward pass, and compute the rest again.

torch keeps each intermediate result of such a chain: at 4,096 tokens two in five of a RetNet layer's bytes.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .gelu_norm import TRITON

if TRITON:
    from . import gating_kernels as kernels

Activation = Callable[[Tensor], Tensor]
_aten = torch.ops.aten
_GRADIENTS: dict[Activation, Callable[[Tensor, Tensor], Tensor]] = {
    F.gelu: _aten.gelu_backward,
    F.relu: lambda gradient, x: _aten.threshold_backward(gradient, x, 0),
    F.silu: _aten.silu_backward,
}
"""Backward passes of activations: from the gradient of the output, and the input, the gradient of the input."""


def gate(activation: Activation, x: Tensor, y: Tensor) -> Tensor:
    """activation(x) * y, of one shape; the activation is one of torch's gelu, relu and silu."""
    if _can_be_fused(x, y) and x.dtype == y.dtype:
        return _GateByKernel.apply(_KINDS.index(activation), x, y)  # type: ignore[no-untyped-call]
    return _Gate.apply(activation, x, y)  # type: ignore[no-untyped-call]


def normalised_gate(x: Tensor, heads: Tensor, eps: float) -> Tensor:
    """silu(x) times the RMSNorm without weights (arXiv:1910.07467, eq. 4) of each head.

    Args:
        x: (..., heads * dim).
        heads: (..., heads, dim); normalised in float32 at least.
        eps: of the norm.

    Returns:
        Shaped like x, in its dtype.
    """
    if _can_be_fused(x, heads) and heads.size(-1) <= LARGEST_HEAD:
        return _NormalisedGateByKernel.apply(x, heads, eps)  # type: ignore[no-untyped-call]
    return _NormalisedGate.apply(x, heads, eps)  # type: ignore[no-untyped-call]


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Activation, x: Tensor, y: Tensor) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(x, y)
        return activation(x) * y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        x, y = ctx.saved_tensors
        of_x = _GRADIENTS[ctx.activation](gradient * y, x)
        return None, of_x, ctx.activation(x).mul_(gradient)


_KINDS: tuple[Activation, ...] = (F.gelu, F.relu, F.silu)
"""In the order of ``gating_kernels``' numbers."""


LARGEST_HEAD = 4096
"""Widest head of which a kernel holds all channels in registers."""


def _can_be_fused(x: Tensor, y: Tensor) -> bool:
    """In compiled code torch makes a kernel of its own, with what lies around it."""
    return (
        TRITON
        and x.is_cuda
        and x.numel() > 0
        and x.dtype in (torch.float16, torch.bfloat16)
        and x.is_contiguous()
        and y.is_contiguous()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


class _GateByKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: int, x: Tensor, y: Tensor) -> Tensor:
        ctx.kind = kind
        ctx.save_for_backward(x, y)
        result: Tensor = kernels.gate(x, y, kind)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return None, *kernels.gate_backward(gradient.contiguous(), x, y, ctx.kind)


class _NormalisedGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: Tensor, eps: float) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(x, heads)
        return F.silu(x) * F.rms_norm(_wide(heads), heads.shape[-1:], eps=eps).flatten(-2).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, given = ctx.saved_tensors
        heads = _wide(given)
        scale = heads.square().mean(-1, keepdim=True).add(ctx.eps).rsqrt()
        normalised = heads * scale
        of_x = _aten.silu_backward(gradient * normalised.flatten(-2).to(x.dtype), x)
        of_normalised = (gradient * F.silu(x)).to(heads.dtype).view_as(heads)
        along = (of_normalised * normalised).mean(-1, keepdim=True)
        return of_x, (scale * (of_normalised - normalised * along)).to(given.dtype), None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _NormalisedGateByKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: Tensor, eps: float) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(x, heads)
        result: Tensor = kernels.normalised_gate(x, heads, eps)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, heads = ctx.saved_tensors
        return *kernels.normalised_gate_backward(gradient.contiguous(), x, heads, ctx.eps), None
