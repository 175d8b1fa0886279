"""Checking gradient norms without waiting for the device.

fairseq's Trainer reads the norm of every update before the next step, to stop at NaN and infinity. Meanwhile the device
runs out of work. Here the device itself leaves the weights as they are if the norm is not finite, and the host looks
one update later, when the answer is long there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torchscale_fairseq.hooks.contracts import SkipsUpdates
from torchscale_fairseq.hooks.monitoring.update_statistics import active_aggregators, logging_to
from torchscale_fairseq.hooks.training.late_copies import LateCopy, copy_late
from torchscale_fairseq.hooks.training.loss_scaling import can_defer_overflows


class UncheckedNorm(Tensor):
    """A gradient norm that counts as finite for now."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Anything but ``torch.isfinite`` sees an ordinary tensor."""
        if func is torch.isfinite:
            return torch.tensor(True)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class LateFailure(Exception):
    """The update before this one had gradients that are not finite, or differ between processes."""


@dataclass(frozen=True)
class Unread:
    """An update whose norm the host has not looked at."""

    number: int
    """Counted from 1."""
    samples: Any
    failed: LateCopy
    """A float32 scalar; 0 if all is well."""
    scaler: dict[str, Any] | None
    """The state of --fp16's loss scaler before the update, which an overflow does not end but skip; else None."""
    pending: list[Callable[[], Any]] = field(default_factory=list)
    """To be called if the update counts."""
    aggregators: dict[str, Any] = field(default_factory=active_aggregators)
    """To which the update is logged."""

    def has_failed(self) -> bool:
        """Wait until the device has answered."""
        return bool(self.failed.read())

    def count(self) -> None:
        """Do what had to wait until it was known that the update counts."""
        with logging_to(self.aggregators):
            for action in self.pending:
                action()


def failure(norms: Tensor) -> Tensor:
    """1.0 if a norm is not finite, or one process has another than the first, as fairseq tells them apart; else 0.0.

    Args:
        norms: (processes,).
    """
    consistent = (norms - norms[0]).abs().max() / (norms[0] + 1e-6) < 1e-6
    return (~(torch.isfinite(norms).all() & consistent)).float()


def unread(number: int, samples: Any, failed: Tensor, scaler: Any) -> Unread:
    """Send the answer on its way to the host.

    Args:
        number: of the update, counted from 1.
        samples: its batches.
        failed: as ``failure`` returns it.
        scaler: of the loss, before the optimizer steps; or None.
    """
    state = None if scaler is None else dict(vars(scaler))
    return Unread(number, samples, copy_late(failed), state)


def can_wait(cfg: Any, optimizer: Any, task: Any, model: Any, criterion: Any) -> bool:
    """Whether the optimizer heeds ``found_inf``, and nothing else depends on each update's success.

    Args:
        cfg: fairseq's whole config.
        optimizer: fairseq's, as the Trainer uses it.
        task, model, criterion: as the Trainer has them.
    """
    scaler = getattr(optimizer, "scaler", None)
    return (
        isinstance(optimizer.optimizer, SkipsUpdates)
        and optimizer.optimizer.can_skip
        and (scaler is None or can_defer_overflows(scaler, task, model, criterion))
        and not cfg.common.tpu
        and not cfg.ema.store_ema
        and not cfg.optimization.use_bmuf
        and cfg.common.quantization_config_path is None
        and not cfg.distributed_training.cpu_offload
        and cfg.distributed_training.ddp_backend in ("pytorch_ddp", "c10d", "legacy_ddp", "no_c10d", "fully_sharded")
    )
