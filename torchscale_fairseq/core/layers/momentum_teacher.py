"""A teacher whose weights follow a student's, and the center of its outputs.

"Emerging Properties in Self-Supervised Vision Transformers", arXiv:2104.14294, sec. 3.1.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.func import functional_call
from torch.optim.swa_utils import get_ema_multi_avg_fn


class _Averages(nn.Module):
    """A module of moving averages, which stay in float32 when a model is converted to a lower precision: changes below
    its rounding would be lost."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep_precision(value: Tensor) -> Tensor:
            moved = fn(value)
            is_low = moved.is_floating_point() and torch.finfo(moved.dtype).bits < 32
            return value.to(moved.device) if is_low else moved

        return super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call]


class MomentumTeacher(_Averages):
    """A network without gradients and without dropout, whose weights are a moving average of another's.

    Args:
        network: of the student's architecture.
    """

    network: nn.Module

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "MomentumTeacher":
        """It stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The network's output, computed in the precision of x."""
        tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        outputs: Tensor
        if all(value.dtype == x.dtype for value in tensors.values() if value.is_floating_point()):
            outputs = self.network(x)
            return outputs
        lower = {name: value.to(x.dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        return functional_call(self.network, lower, (x,))

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """Move each weight towards the student's: momentum * own + (1 - momentum) * student's.

        Args:
            student: of the teacher's architecture.
            momentum: 0 to copy the student.
        """
        own = list(self.network.parameters())
        theirs = [value.to(mine.dtype) for mine, value in zip(own, student.parameters(), strict=True)]
        get_ema_multi_avg_fn(momentum)(own, theirs, None)


class Center(_Averages):
    """The moving average of the teacher's outputs, over all images of all processes.

    Args:
        prototypes: width of the outputs.
    """

    value: Tensor

    def __init__(self, prototypes: int):
        super().__init__()
        self.register_buffer("value", torch.zeros(prototypes))
        self._sums: list[Tensor] = []
        self._count = 0

    def observe(self, outputs: Tensor) -> None:
        """Remember outputs, (views, images, prototypes), for the next update."""
        self._sums.append(outputs.detach().to(self.value.dtype).sum((0, 1)))
        self._count += outputs.size(0) * outputs.size(1)

    def update(self, momentum: float, group: ProcessGroup | None = None) -> None:
        """Move towards the mean of all outputs since the last update (eq. 4).

        Args:
            momentum: weight of the center so far.
            group: processes with other images, all of which call this together; None for this one alone.
        """
        total = torch.stack(self._sums).sum(0) if self._sums else torch.zeros_like(self.value)
        total = torch.cat((total, total.new_tensor([self._count])))
        self._sums, self._count = [], 0
        if group is not None:
            dist.all_reduce(total, group=group)
        mean = torch.where(total[-1] > 0, total[:-1] / total[-1].clamp(min=1), self.value)
        self.value.lerp_(mean, 1.0 - momentum)
