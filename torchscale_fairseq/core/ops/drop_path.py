"""Stochastic depth: "Deep Networks with Stochastic Depth", arXiv:1603.09382."""

import torch
from torch import Tensor


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Zero whole rows of the batch with probability ``rate`` and scale the others by 1 / (1 - rate).

    Args:
        x: (batch, ...).
        rate: in [0, 1).
    """
    kept = torch.rand([x.size(0)] + [1] * (x.dim() - 1), device=x.device) >= rate
    return x * (kept.to(x.dtype) / (1 - rate))
