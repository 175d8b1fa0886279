"""Evaluation in several processes: fairseq-validate adds up what they find; other commands compute in one, or in
several that hold a model together."""

from collections.abc import Sequence
from typing import Any

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.hooks.runs.launch import launched_processes
from torchscale_fairseq.hooks.sharding.options import is_fully_sharded


def refuse_processes(cfg: Any, command: str) -> None:
    """Refuse several processes where each would generate everything, or print the perplexity of its own part.

    Args:
        cfg: of the command.
        command: ``eval_lm``, say.

    Raises:
        InputError: there are several processes.
    """
    processes = launched_processes()
    if command == "eval_lm":
        processes = max(processes, cfg.distributed_training.distributed_world_size)
    if processes > 1 and command != "validate" and (command == "interactive" or not is_fully_sharded(cfg)):
        way_out = "" if command == "interactive" else f", with --num-shards {processes} and a --shard-id for each"
        raise InputError(
            f"fairseq-{command.replace('_', '-')} computes in one process, but was started in {processes}; start "
            f"{processes} commands instead{way_out}."
        )


def leave_out_empty_batches(models: Any, cfg: Any, task: Any) -> None:
    """Let a task pass over the empty batches by which fairseq fills up the last round of several processes; in stock
    they end fairseq-validate with a ``KeyError``.

    Args:
        models, cfg: not looked at.
        task: of which two methods are replaced.
    """
    valid_step, reduce_metrics = task.valid_step, task.reduce_metrics

    def step_unless_empty(sample: Any, model: Any, criterion: Any) -> Any:
        return valid_step(sample, model, criterion) if sample else (0.0, 0, {})

    def reduce_those_of_batches(logging_outputs: Sequence[dict[str, Any]], criterion: Any) -> None:
        reduce_metrics([logged for logged in logging_outputs if logged], criterion)

    task.valid_step, task.reduce_metrics = step_unless_empty, reduce_those_of_batches
