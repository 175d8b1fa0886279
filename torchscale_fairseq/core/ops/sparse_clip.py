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
    squares = [torch.linalg.vector_norm(g, dtype=_wide(g.dtype)).square() for g in gradients]
    return torch.stack([s.to(device) for s in squares]).sum() if squares else torch.zeros((), device=device)


def clip_(gradients: Iterable[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale gradients in place by min(1, max_norm / norm)."""
    coefficient = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(coefficient.to(gradient.device, gradient.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
