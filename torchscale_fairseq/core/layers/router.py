"""Routers: scores of experts for tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BALANCE_TEMPERATURE = 0.07
FIRST_TEMPERATURE = 0.3
LOWEST_TEMPERATURE = 0.01


class LinearRouter(nn.Module):
    """A linear layer (Switch Transformer, arXiv:2101.03961, eq. 1).

    Args:
        width: of the tokens.
        experts: how many.
    """

    def __init__(self, width: int, experts: int):
        super().__init__()
        self.wg = nn.Linear(width, experts, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(tokens, width) to scores (tokens, experts), and other scores for the balance loss if it needs them."""
        return self.wg(x), None


class CosineRouter(nn.Module):
    """X-MoE's router: cosine of a low-dimensional projection and an embedding per expert, over a temperature.

    X-MoE, arXiv:2204.09179, sec. 3.2. The temperature is learnt, from 0.3 and not below 0.01; the balance loss sees
    a fixed one of 0.07, as in the authors' code.

    Args:
        width: of the tokens.
        experts: how many.
        dim: of the projection.
    """

    def __init__(self, width: int, experts: int, dim: int):
        super().__init__()
        self.wg_reduction = nn.Linear(width, dim, bias=False)
        self.wg = nn.Parameter(nn.init.orthogonal_(torch.empty(experts, dim)))
        self.temperature = nn.Parameter(torch.tensor(FIRST_TEMPERATURE))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores of the experts; arguments and result as for ``LinearRouter``."""
        projected = self.wg_reduction(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.promote_types(projected.dtype, torch.float32)
            cosine = F.normalize(projected.to(wide), dim=1) @ F.normalize(self.wg.to(wide), dim=1).T
            scores = cosine / self.temperature.to(wide).clamp(min=LOWEST_TEMPERATURE)
        return scores.to(projected.dtype), (cosine / BALANCE_TEMPERATURE).to(projected.dtype)


class TorchScaleCosineRouter(nn.Module):
    """X-MoE's router as TorchScale's code has it: tokens are not normalised, there is no temperature, 16 dimensions.

    Its forward pass also rescales the embeddings in place, which changes no score, but the gradient: it is that of
    embeddings of length 1.5.
    """

    LENGTH = 1.5
    DIM = 16

    def __init__(self, width: int, experts: int):
        super().__init__()
        self.wg_reduction = nn.Linear(width, self.DIM, bias=False)
        self.wg = nn.Parameter(nn.init.orthogonal_(torch.empty(experts, self.DIM), gain=0.32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores of the experts; arguments and result as for ``LinearRouter``."""
        projected = self.wg_reduction(x)
        rescaled = self.wg + (F.normalize(self.wg, dim=1) * self.LENGTH - self.wg).detach()
        direction = F.normalize(rescaled.float(), dim=1)
        return (projected.float() @ direction.T).to(projected.dtype), None
