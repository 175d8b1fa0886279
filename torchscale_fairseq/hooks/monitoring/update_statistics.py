"""Statistics of an update, kept on the device until they are printed."""

import logging
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from typing import Any

from fairseq.logging import metrics
from torch import Tensor

logger = logging.getLogger(__name__)
LEFT_OUT = ("ppl", "wps", "wpb", "bsz")
"""Statistics that fairseq leaves out of the result of ``Trainer.train_step``."""


class Statistics(Mapping[str, Any]):
    """The result of ``Trainer.train_step``, fetched from the device when it is first read."""

    def __init__(self, meters: Any, sample_size: Any):
        self._meters = meters
        self._sample_size = sample_size

    @cached_property
    def _values(self) -> dict[str, Any]:
        values = dict(self._meters.get_smoothed_values())
        values["sample_size"] = self._sample_size
        return {name: value for name, value in values.items() if name not in LEFT_OUT}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def log_update(task: Any, criterion: Any, outputs: Any, sample_size: Any, norm: Tensor, clip_norm: float) -> Statistics:
    """Log as ``Trainer._reduce_and_log_stats`` does.

    Args:
        task, criterion: fairseq's.
        outputs: the criterion's logging outputs.
        sample_size: the criterion's.
        norm: of the gradients, finite.
        clip_norm: to which they were clipped, if it is above 0.
    """
    metrics.log_speed("ups", 1.0, priority=100, round=2)
    metrics.log_scalar("gnorm", norm, priority=400, round=3)
    if clip_norm > 0:
        metrics.log_scalar("clip", (norm > clip_norm) * 100.0, priority=500, round=1)
    with metrics.aggregate() as meters:
        task.reduce_metrics(outputs, criterion)
        if "loss" not in meters:
            _warn_of_no_loss()
            metrics.log_scalar("loss", -1)
    return Statistics(meters, sample_size)


@cache
def _warn_of_no_loss() -> None:
    """fairseq's words, once."""
    logger.warning("Criterion.reduce_metrics did not log a 'loss' value, which may break some functionality")
