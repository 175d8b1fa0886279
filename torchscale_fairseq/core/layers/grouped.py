"""Layers with parameters of their own for each expert, in front of which stands an axis of experts."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..ops.grouped import grouped_linear, grouped_norm
from ..ops.segments import Segments
from ..parallel.groups import ExpertSplit


class GroupedLinear(nn.Module):
    """A linear layer per expert. Arguments as for ``LinearFactory``, after the split."""

    def __init__(self, split: ExpertSplit, in_features: int, out_features: int, *, bias: bool, activated: bool = False):
        super().__init__()
        self.split = split
        self.weight = nn.Parameter(torch.empty(split.local, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(split.local, out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As nn.Linear's."""
        for weight, bias in self.matrices():
            bound = 1 / math.sqrt(weight.size(1))
            nn.init.uniform_(weight, -bound, bound)
            if bias is not None:
                nn.init.uniform_(bias, -bound, bound)

    def matrices(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Weight (out, in) and bias of each local expert, to be initialised. Random numbers drawn meanwhile depend on
        the expert, not on which of them this process holds."""
        seed = int(torch.randint(2**31, (1,), device="cpu"))
        for index, weight in enumerate(self.weight.data):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + self.split.first + index)
                yield weight, None if self.bias is None else self.bias.data[index]

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """(rows, in) to (rows, out), whose segments are those of the local experts."""
        return grouped_linear(x, self.weight, self.bias, segments)


class GroupedNorm(nn.Module):
    """A normalisation per expert, as ``build_norm`` makes one."""

    def __init__(self, split: ExpertSplit, kind: str, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(split.local, width))
        self.bias = None if kind == "rmsnorm" else nn.Parameter(torch.zeros(split.local, width))

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """(rows, width) to the same, whose segments are those of the local experts."""
        return grouped_norm(x, self.weight, self.bias, segments, eps=self.eps)
