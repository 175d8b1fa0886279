"""Stochastic depth."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Sets whole rows of a batch to zero in training ("Deep Networks with Stochastic Depth", arXiv:1603.09382).

    Args:
        drop_prob: probability of a row.
    """

    def __init__(self, drop_prob: float | None = None):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """(batch, ...) to the same shape."""
        if not self.training or not self.drop_prob:
            return x
        keep = 1.0 - self.drop_prob
        kept = torch.rand(x.size(0), *[1] * (x.dim() - 1), device=x.device) < keep
        return x * kept.to(x.dtype) / keep

    def extra_repr(self) -> str:
        return f"p={self.drop_prob}"
