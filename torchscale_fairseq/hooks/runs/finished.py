"""A run that has reached its end is not trained any further when the same command is started again.

Stock fairseq looks at ``--max-update``, ``--stop-time-hours`` and ``--patience`` only after an update, so that each
new start of a finished run makes one more and overwrites the checkpoint.
"""

import logging
from collections.abc import Callable
from typing import Any

from torchscale_fairseq.hooks import running

logger = logging.getLogger(__name__)

EARLY_STOP = "early_stop"
"""The entry of a checkpoint's ``extra_state`` that counts validations without improvement."""


def look_for_the_end(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``checkpoint_utils.load_checkpoint`` that sets ``trainer.finished``."""

    def load_checkpoint(cfg: Any, trainer: Any, **kwargs: Any) -> Any:
        extra_state, epoch_itr = stock(cfg, trainer, **kwargs)
        reason = end_of(trainer, epoch_itr.next_epoch_idx)
        trainer.finished = reason is not None
        if reason is not None:
            logger.info(f"nothing to train: {reason}; raise it to train on")
        return extra_state, epoch_itr

    return load_checkpoint


def train_unless_finished(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq_cli.train.train``, which trains an epoch and says whether to stop."""

    def train(cfg: Any, trainer: Any, task: Any, epoch_itr: Any) -> Any:
        if trainer.finished:
            return [None], True
        result = stock(cfg, trainer, task, epoch_itr)
        trainer.finish_pending_save()
        return result

    return train


def end_of(trainer: Any, epoch: int) -> str | None:
    """The limit that a resumed run has reached; None if there is more to train. All processes answer alike.

    Args:
        trainer: with the checkpoint loaded.
        epoch: the one to be trained next.
    """
    options, patience = trainer.cfg.optimization, trainer.cfg.checkpoint.patience
    updates = trainer.get_num_updates()
    hours = trainer._previous_training_time / 3600  # as in the checkpoint, and so alike in all processes
    if options.max_update and updates >= options.max_update:
        return f"--max-update ({options.max_update}) is reached after {updates} updates"
    if options.max_epoch and epoch > options.max_epoch:
        return f"--max-epoch ({options.max_epoch}) is reached"
    if 0 < options.stop_time_hours < hours:
        return f"--stop-time-hours ({options.stop_time_hours:g}) is reached after {hours:.3g} hours"
    if 0 < patience <= early_stop_counts().get("num_runs", 0):
        return f"--patience ({patience}) is reached: as many validations in a row brought no improvement"
    return None


def early_stop_counts() -> dict[str, Any]:
    """The ``best`` validation and the number of validations since (``num_runs``), as fairseq-train counts them for
    ``--patience``; empty before the first validation."""
    train = running.command("train")
    counts = {} if train is None else vars(train["should_stop_early"])
    return {name: counts[name] for name in ("best", "num_runs") if name in counts}


def restore_early_stop(extra_state: dict[str, Any]) -> None:
    """Resume the counts of a checkpoint, where stock starts from zero."""
    train = running.command("train")
    if train is not None:
        vars(train["should_stop_early"]).update(extra_state.get(EARLY_STOP, {}))
