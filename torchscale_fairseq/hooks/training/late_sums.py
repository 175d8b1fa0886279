"""Sums over processes of an update's figures, without a wait for the device.

In each update fairseq's Trainer sums figures over processes: the sample size, the loss, the number of tokens. It copies
those that the host has to the device, where the copy waits for all work before it, sums in two reductions, and looks at
the sums right away. Here one reduction sums all figures, and the host reads the sums in the next update, when they are
long there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.distributed import utils as distributed_utils
from torch import Tensor

from torchscale_fairseq.hooks.training.late_copies import LateCopy, copy_late, send


class NonZero(Tensor):
    """A divisor on the device. It is true, which nobody has to ask the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True)
class LateSums:
    """Figures summed over processes, on the device and on their way to the host."""

    on_device: tuple[Tensor, ...]
    """Shaped like the figures; float64, as in fairseq."""
    copy: LateCopy
    """All of them, one after the other."""

    def read(self) -> list[Tensor]:
        """Wait until the device has summed. Returns the sums in host memory."""
        parts = self.copy.read().split([figure.numel() for figure in self.on_device])
        return [part.view(figure.shape) for part, figure in zip(parts, self.on_device, strict=True)]


def sum_late(figures: Sequence[Any], device: torch.device, group: Any) -> LateSums:
    """Sum figures over processes, which have equally many of equal shapes.

    Args:
        figures: numbers and tensors.
        device: on which they are summed.
        group: fairseq's, of the processes.
    """
    numbers = [figure for figure in figures if not torch.is_tensor(figure)]
    sent = iter(send(torch.tensor(numbers, dtype=torch.float64), device))
    own = [send(figure.detach(), device) if torch.is_tensor(figure) else next(sent) for figure in figures]
    sums = torch.cat([figure.to(torch.float64).reshape(-1) for figure in own])
    distributed_utils.all_reduce(sums, group=group)
    parts = zip(sums.split([figure.numel() for figure in own]), own, strict=True)
    on_device = tuple(part.view(figure.shape) for part, figure in parts)
    return LateSums(on_device, copy_late(sums))


def divisor(sample_size: Tensor) -> NonZero:
    """A sample size to divide gradients by: 1 instead of 0.

    Args:
        sample_size: a scalar on the device.
    """
    return (sample_size + (sample_size == 0)).as_subclass(NonZero)  # torch.where would copy a 1 from the host


def add_up(logging_outputs: Sequence[dict[str, Any]], *, ignore: bool) -> dict[str, Any]:
    """The figures of an update's batches as those of one batch.

    Args:
        logging_outputs: of a criterion, per batch.
        ignore: they are of a dummy batch, and count as zeros.
    """
    if not logging_outputs:
        return {}
    first = logging_outputs[0]
    if ignore:
        return {name: torch.zeros_like(value) if torch.is_tensor(value) else 0 for name, value in first.items()}
    return {name: sum(log[name] for log in logging_outputs if name in log) for name in first}
