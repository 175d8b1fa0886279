"""--fp16's loss scale without waiting for the device.

fairseq's DynamicLossScaler reads the norm of each update's gradients, and skips the update if the norm is not finite.
Here the device decides alone whether to clip and whether to skip, and the host learns of it an update later. It then
repeats the update that was skipped, so that fairseq's own code reports it and changes the loss scale, and then the
batch that it had begun with the old scale. Hence a batch must leave no trace in a model before its update is made.
"""

from collections.abc import Callable
from typing import Any

import torch
from fairseq.optim.dynamic_loss_scaler import DynamicLossScaler
from fairseq.optim.fp16_optimizer import MemoryEfficientFP16Optimizer
from fairseq.tasks import FairseqTask
from torch import Tensor

OURS = "torchscale_fairseq"


def can_defer_overflows(scaler: Any, task: Any, model: Any, criterion: Any) -> bool:
    """Whether batches can be computed again as if for the first time. That is known of models of this package, which
    have no statistics of batches, but not of a task that changes more than the parameters in an update.

    Args:
        scaler: of the optimizer.
        task, model, criterion: as the Trainer has them.
    """
    return (
        isinstance(scaler, DynamicLossScaler)
        and type(task).optimizer_step is FairseqTask.optimizer_step
        and _origin(type(model)) == OURS
        and _origin(type(criterion)) in (OURS, "fairseq")
    )


def _origin(kind: type) -> str:
    """The package that a class was written in, whatever torch derived from it to shard a model."""
    written = next(base for base in kind.__mro__ if not base.__module__.startswith("torch."))
    return written.__module__.partition(".")[0]


def clip_without_waiting(optimizer: Any, measure: Callable[[float], Tensor], max_norm: float) -> Tensor:
    """``clip_grad_norm`` of fairseq's optimizer, which leaves the comparisons of the norm to the device.

    Args:
        optimizer: fairseq's, with or without a loss scale.
        measure: clips gradients to a norm, or to none for 0, and returns their norm.
        max_norm: to clip to; 0 for none.
    """
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None:
        return measure(max_norm)
    optimizer.scaler = None  # it would look at the norm
    try:
        norm = measure(0.0)
    finally:
        optimizer.scaler = scaler
    if max_norm > 0:
        factor = optimizer._multiply_factor
        clipped = factor * _share(optimizer, norm, max_norm)
        optimizer._multiply_factor = torch.where(norm > max_norm, clipped.double(), _on(norm.device, factor))
    return norm


def _share(optimizer: Any, norm: Tensor, max_norm: float) -> Tensor:
    """The factor by which clipping shortens gradients, computed in the precision that fairseq computes it in."""
    if isinstance(optimizer, MemoryEfficientFP16Optimizer):  # in Python's numbers
        return torch.full_like(norm, max_norm, dtype=torch.float64) / norm.double()
    return max_norm / norm


def _on(device: torch.device, factor: float | Tensor) -> Tensor:
    """A factor in float64, of which the optimizer takes the inverse: in float32 it would be another number."""
    if isinstance(factor, Tensor):
        return factor.to(device, torch.float64)
    return torch.full((), factor, dtype=torch.float64, device=device)  # a copy from the host would wait
