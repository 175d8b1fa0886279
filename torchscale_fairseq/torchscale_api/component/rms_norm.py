"""RMSNorm."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Division by the root of the mean square, in float32 (arXiv:1910.07467, eq. 4).

    Args:
        dim: of the last axis.
        eps: added to the mean square.
        elementwise_affine: whether there is a weight per channel.
    """

    def __init__(self, dim: int, eps: float = 1e-6, elementwise_affine: bool = True):
        super().__init__()
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.weight = nn.Parameter(torch.ones(dim)) if elementwise_affine else None

    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same shape."""
        wide = torch.promote_types(x.dtype, torch.float32)
        output = self._norm(x.to(wide)).to(x.dtype)
        return output if self.weight is None else output * self.weight
