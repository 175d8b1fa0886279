"""Updates by fairseq's Trainer in the test's own processes, which may be several: starting fairseq-train for each case
takes longer than a case."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fairseq import options, tasks
from fairseq import trainer as fairseq_trainer
from fairseq.data.iterators import GroupedIterator
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import fully_sharded_data_parallel
from fairseq.logging import metrics

from torchscale_fairseq import plugin

plugin.register()
BATCHES = 4
"""Batches that make an update, over processes and --update-freq."""
UPDATES = 3


def record(cases: Mapping[str, Sequence[str]], path: Path | str, *more: str) -> None:
    """Make a few updates for each case, and write to a file what ``updates`` says of each.

    Args:
        cases: words of fairseq-train, by name.
        path: of the file.
        more: words for all cases.
    """
    results = {name: updates([*words, *more]) for name, words in cases.items()}
    if _rank() == 0:
        torch.save(results, path)


def updates(words: Sequence[str]) -> dict[str, Any]:
    """Losses, gradient norms and, in the first process, the weights before and after some updates.

    Args:
        words: of fairseq-train.
    """
    trainer = make_trainer(words)
    batches = trainer.get_train_iterator(1).next_epoch_itr(shuffle=False)
    initial = _weights(trainer)
    losses, norms = [], []
    for samples, _ in zip(GroupedIterator(batches, BATCHES // _processes()), range(UPDATES), strict=False):
        with metrics.aggregate("train_inner"):
            output = trainer.train_step(samples)
        losses.append(output["loss"])
        norms.append(float(metrics.get_meter("train_inner", "gnorm").val))
    return {"losses": losses, "norms": norms, "initial": initial, "weights": _weights(trainer)}


def _weights(trainer: Any) -> dict[str, torch.Tensor]:
    trainer.consolidate_optimizer()
    with trainer.saving_together():
        return {n: w.clone() for n, w in trainer.state_dict()["model"].items()}


def make_trainer(words: Sequence[str]) -> Any:
    """The trainer that fairseq-train makes of these words."""
    torch.manual_seed(1)
    metrics.reset()
    config = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), list(words)))
    config.distributed_training.distributed_world_size = _processes()
    config.distributed_training.distributed_rank = _rank()
    config.optimization.update_freq = [BATCHES // _processes()]
    task = tasks.setup_task(config.task)
    sharded = config.distributed_training.ddp_backend == "fully_sharded"
    wrapping = fully_sharded_data_parallel.fsdp_enable_wrap(config.distributed_training) if sharded else nullcontext()
    with wrapping:
        model = task.build_model(config.model)
    return fairseq_trainer.Trainer(config, task, model, task.build_criterion(config.criterion))


def _processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
