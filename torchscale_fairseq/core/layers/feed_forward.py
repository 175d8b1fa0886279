"""Feed-forward networks."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..ops.gating import gate
from ..ops.gelu_norm import gelu_norm, has_kernel
from .bit_linear import at_once
from .hooked import is_hooked, is_plain_linear
from .linear import LinearFactory, dense, projected

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "swish": F.silu}


class FeedForwardNetwork(nn.Module):
    """fc2(inner_norm(activation(fc1(x)))).

    "Attention Is All You Need", arXiv:1706.03762, eq. 2; the inner norm is SubLN's (Magneto,
    arXiv:2210.06423, sec. 2.1).

    Args:
        embed_dim: width of input and output.
        ffn_dim: inner width.
        activation_fn: gelu, relu or swish.
        activation_dropout: dropout after the activation.
        inner_norm: norm over ffn_dim, or None.
        bias: whether the projections have biases.
        linear: makes the projections.
        chunk_size: tokens at a time, whose inner activations are computed again in the backward pass; 0 for all.
    """

    def __init__(
        self,
        embed_dim: int,
        ffn_dim: int,
        *,
        activation_fn: str = "gelu",
        activation_dropout: float = 0.0,
        inner_norm: nn.Module | None = None,
        bias: bool = True,
        linear: LinearFactory = dense,
        chunk_size: int = 0,
    ):
        super().__init__()
        self.ffn_dim, self.chunk_size = ffn_dim, chunk_size
        self.activation = ACTIVATIONS[activation_fn]
        self.activation_dropout = nn.Dropout(activation_dropout)
        self.fc1 = linear(embed_dim, ffn_dim, bias=bias, activated=True)
        self.fc2 = linear(ffn_dim, embed_dim, bias=bias)
        self.ffn_layernorm = inner_norm

    @property
    def _is_plain(self) -> bool:
        """Whether nothing but a bias, GELU and LayerNorm lies between the two projections."""
        return (
            type(self) is FeedForwardNetwork
            and is_plain_linear(self.fc1)
            and self.fc1.bias is not None
            and self.activation is F.gelu
            and type(self.ffn_layernorm) is nn.LayerNorm
            and not (self.training and self.activation_dropout.p)
            and not (is_hooked(self.activation_dropout) or is_hooked(self.ffn_layernorm))
        )

    def inner(self, x: Tensor) -> Tensor:
        """(..., embed_dim) to the activated (..., ffn_dim)."""
        return self.activation(self.fc1(x))

    def forward(self, x: Tensor) -> Tensor:
        """(..., embed_dim) to the same."""
        if not 0 < self.chunk_size < x.shape[:-1].numel():
            return self._at_once(x)
        chunks = x.flatten(0, -2).split(self.chunk_size)
        if torch.is_grad_enabled():
            outputs = [checkpoint(self._at_once, chunk, use_reentrant=False) for chunk in chunks]
        else:
            outputs = [self._at_once(chunk) for chunk in chunks]
        return torch.cat(outputs).view_as(x)

    def _at_once(self, x: Tensor) -> Tensor:
        if has_kernel(x, self.ffn_dim) and self._is_plain:
            first, norm = cast(nn.Linear, self.fc1), cast(nn.LayerNorm, self.ffn_layernorm)
            return self.fc2(gelu_norm(F.linear(x, first.weight), first.bias, norm.weight, norm.bias, norm.eps))
        x = self.activation_dropout(self.inner(x))
        if self.ffn_layernorm is not None:
            x = self.ffn_layernorm(x)
        return self.fc2(x)


class GatedLinearUnit(FeedForwardNetwork):
    """fc2(inner_norm(activation(fc1(x)) * gate(x))), without biases.

    "GLU Variants Improve Transformer", arXiv:2002.05202, eq. 6. Arguments as for FeedForwardNetwork.
    """

    def __init__(self, embed_dim: int, ffn_dim: int, *, linear: LinearFactory = dense, **options: Any):
        super().__init__(embed_dim, ffn_dim, bias=False, linear=linear, **options)
        self.gate = linear(embed_dim, ffn_dim, bias=False)

    def inner(self, x: Tensor) -> Tensor:
        """(..., embed_dim) to the gated (..., ffn_dim)."""
        first, second = at_once(x, self.fc1, self.gate) or projected(x, self.fc1, self.gate)
        return gate(self.activation, first, second)
