"""Statistics of an update, kept on the device until they are printed."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any
from unittest import mock

from fairseq.logging import metrics
from torch import Tensor

logger = logging.getLogger(__name__)
LEFT_OUT = ("ppl", "wps", "wpb", "bsz")
"""Statistics that fairseq leaves out of the result of ``Trainer.train_step``."""


class Statistics(Mapping[str, Any]):
    """The result of ``Trainer.train_step``, fetched from the device when it is first read.

    Args:
        read: fetches it.
    """

    def __init__(self, read: Callable[[], dict[str, Any]]):
        self._read = read

    @cached_property
    def _values(self) -> dict[str, Any]:
        return self._read()

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def log_norm(norm: Tensor, clip_norm: float) -> None:
    """Log an update and the norm of its gradients, the first part of ``Trainer._reduce_and_log_stats``.

    Args:
        norm: finite.
        clip_norm: to which they were clipped, if it is above 0.
    """
    norm = norm.as_subclass(Tensor)
    metrics.log_speed("ups", 1.0, priority=100, round=2)
    metrics.log_scalar("gnorm", norm, priority=400, round=3)
    if clip_norm > 0:
        metrics.log_scalar("clip", (norm > clip_norm) * 100.0, priority=500, round=1)


def log_outputs(task: Any, criterion: Any, outputs: Any, sample_size: Any) -> Statistics:
    """Log the criterion's figures, the second part of ``Trainer._reduce_and_log_stats``.

    Args:
        task, criterion: fairseq's.
        outputs: the criterion's logging outputs.
        sample_size: the criterion's.
    """
    with metrics.aggregate() as meters:
        task.reduce_metrics(outputs, criterion)
        if "loss" not in meters:
            _warn_of_no_loss()
            metrics.log_scalar("loss", -1)

    def read() -> dict[str, Any]:
        values = {**meters.get_smoothed_values(), "sample_size": sample_size}
        return {name: value for name, value in values.items() if name not in LEFT_OUT}

    return Statistics(read)


def read_outputs(task: Any, criterion: Any, outputs: Any, sample_size: Any) -> dict[str, Any]:
    """Read the figures that ``log_outputs`` logs for these arguments, without logging them."""
    with metrics.aggregate(new_root=True):
        return dict(log_outputs(task, criterion, outputs, sample_size))


@cache
def _warn_of_no_loss() -> None:
    """fairseq's words, once."""
    logger.warning("Criterion.reduce_metrics did not log a 'loss' value, which may break some functionality")


@contextmanager
def logging_to(aggregators: dict[str, Any]) -> Iterator[None]:
    """Within the block, fairseq's metrics are logged where they would have been when these were active.

    Args:
        aggregators: as ``active_aggregators`` returned them.
    """
    with mock.patch.object(metrics, "_active_aggregators", aggregators):
        yield


def active_aggregators() -> dict[str, Any]:
    """Meters to which fairseq's metrics are logged now, by name."""
    active: dict[str, Any] = metrics._active_aggregators.copy()
    return active
