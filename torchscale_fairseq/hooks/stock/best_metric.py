"""``--best-checkpoint-metric`` is compared with the figures of one batch of validation before training begins.

Stock fairseq looks it up after the first epoch, and ends with ``KeyError`` before it has saved a checkpoint.
"""

from collections.abc import Callable
from typing import Any

from fairseq.logging import metrics

from torchscale_fairseq.core.errors import InputError, did_you_mean
from torchscale_fairseq.hooks.contracts import MeasuresAfterValidation
from torchscale_fairseq.hooks.runs.preemption import StopRequested
from torchscale_fairseq.hooks.stock.batches import stop_reading

THROUGHPUT = {"bsz", "wpb", "wps"}


def check_after_loading(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``checkpoint_utils.load_checkpoint``, followed by the check."""

    def load_checkpoint(cfg: Any, trainer: Any, **kwargs: Any) -> Any:
        loaded = stock(cfg, trainer, **kwargs)
        check_metric(trainer)
        return loaded

    return load_checkpoint


def check_metric(trainer: Any) -> None:
    """Refuse a name that is not among the figures of validation. ``loss``, the default, always is.

    Raises:
        InputError: with the names there are.
    """
    metric = trainer.cfg.checkpoint.best_checkpoint_metric
    options = getattr(trainer.task, "cfg", None)
    switch = getattr(options, f"eval_{metric}", None)
    measured_later = isinstance(trainer.task, MeasuresAfterValidation)
    if metric == "loss" or trainer.cfg.dataset.disable_validation or switch or measured_later:
        return
    if switch is False:
        raise InputError(f"--best-checkpoint-metric {metric} needs --eval-{metric}, without which it is not measured")
    names = figures_of_a_batch(trainer)
    if names and metric not in names:
        hint = did_you_mean(metric, names) or f"; they are {', '.join(sorted(names))}"
        raise InputError(f"--best-checkpoint-metric {metric} is not among the figures of validation{hint}")


def figures_of_a_batch(trainer: Any) -> set[str]:
    """The names of the figures that validation of the first batch gives; empty if it cannot be known.

    The batch has a loader of its own, which ends here: validation reuses its loader, which must not be read by two.
    """
    subset = trainer.cfg.dataset.valid_subset.split(",")[0]
    source = trainer.get_valid_iterator(subset, disable_iterator_cache=True)
    sample = next(iter(source.next_epoch_itr(shuffle=False, set_dataset_epoch=False)), None)
    stop_reading()
    if sample is None:
        return set()
    with metrics.aggregate(new_root=True) as figures:
        try:
            trainer.valid_step(sample)
        except StopRequested:  # training, which follows, sees to it
            return set()
    return set(figures.get_smoothed_values()) - THROUGHPUT
