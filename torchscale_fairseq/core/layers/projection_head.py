"""DINO's projection head: features to their similarities with learned prototypes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STD = 0.02


class ProjectionHead(nn.Module):
    """A network of three layers to a unit vector, and its cosines with prototypes (DINO, arXiv:2104.14294, app. C).

    The last layer is normalised by weight: each prototype has length 1. It is computed in float32 at least, as
    logits are divided by small temperatures.

    Args:
        width: of the features.
        hidden_dim: inner width.
        bottleneck_dim: width of the unit vector.
        prototypes: number of outputs.
    """

    def __init__(self, width: int, hidden_dim: int, bottleneck_dim: int, prototypes: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=STD)
                nn.init.zeros_(module.bias)
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck_dim) * bottleneck_dim**-0.5)
        self.frozen = False
        """Whether the prototypes get no gradient. It is zero then, not missing, as DistributedDataParallel needs it."""

    def forward(self, features: Tensor) -> Tensor:
        """(batch, width) to logits (batch, prototypes), cosines in float32 or more."""
        directions = _unit(self.prototypes)
        if self.frozen and directions.requires_grad:
            directions.register_hook(torch.zeros_like)
        return F.linear(_unit(self.mlp(features)), directions)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
