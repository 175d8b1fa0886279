"""SparseClip: clipping gradients by a norm in which experts do not outweigh the rest.

TorchScale, arXiv:2211.13184, sec. 2.3.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def sparse_norm(dense: Tensor, experts: Tensor, *, weight: float) -> Tensor:
    """sqrt(dense + weight * experts).

    Args:
        dense: scalar, sum of squares of the gradients of all that is no expert.
        experts: scalar, the same of all experts, each counted once.
        weight: 1 / experts per layer.
    """
    return (dense + weight * experts).sqrt()


def sum_of_squares(gradients: Iterable[Tensor], device: torch.device) -> Tensor:
    """Over all entries, in float32 or, for float64 gradients, float64."""
    gradients = list(gradients)
    if not gradients:
        return torch.zeros((), device=device)
    dtype = torch.float64 if any(g.dtype == torch.float64 for g in gradients) else torch.float32
    norms = torch._foreach_norm(gradients, 2, dtype=dtype)
    return torch.stack([norm.to(device) for norm in norms]).square().sum()
