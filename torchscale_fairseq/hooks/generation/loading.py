"""Changing what a command of generation or evaluation loads from checkpoints."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fairseq import checkpoint_utils


@contextmanager
def after_loading(change: Callable[[Any, Any, Any], None]) -> Iterator[None]:
    """Meanwhile, call ``change(models, cfg, task)`` each time that fairseq has loaded models.

    Args:
        change: gets the list of models, the options in the checkpoint and the task.
    """
    load = checkpoint_utils.load_model_ensemble_and_task

    def load_and_change(*args: Any, **kwargs: Any) -> Any:
        models, cfg, task = load(*args, **kwargs)
        change(models, cfg, task)
        return models, cfg, task

    checkpoint_utils.load_model_ensemble_and_task = load_and_change
    try:
        yield
    finally:
        checkpoint_utils.load_model_ensemble_and_task = load
