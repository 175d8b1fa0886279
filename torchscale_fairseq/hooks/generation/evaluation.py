"""Options that fairseq's commands of generation and evaluation accept and pass over: shards, precision, overrides."""

import ast
import logging
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks import FairseqTask
from omegaconf import DictConfig

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.hooks.generation import options as generation_options
from torchscale_fairseq.hooks.generation.loading import after_loading
from torchscale_fairseq.hooks.generation.processes import leave_out_empty_batches, refuse_processes
from torchscale_fairseq.hooks.options import refused as refused_options
from torchscale_fairseq.hooks.sharding.evaluation import sharded_over_processes
from torchscale_fairseq.hooks.stock.precision import in_evaluation

logger = logging.getLogger(__name__)

COMMANDS = ("generate", "interactive", "validate", "eval_lm")


def heed_options(stock: Callable[..., Any], *, command: str) -> Callable[..., Any]:
    """A command's ``main`` that reads its shard of the data, computes in the requested precision, and names options
    that would change nothing.

    Args:
        stock: fairseq's.
        command: one of COMMANDS.
    """

    def main(cfg: Any, *args: Any, **kwargs: Any) -> Any:
        cfg = convert_namespace_to_omegaconf(cfg) if isinstance(cfg, Namespace) else cfg
        refused_options.check_evaluation(cfg, command)
        refuse_processes(cfg, command)
        if command in ("generate", "interactive"):
            generation_options.check(cfg, interactive=command == "interactive")
        with ExitStack() as meanwhile:
            meanwhile.enter_context(one_shard(cfg, command))
            meanwhile.enter_context(sharded_over_processes(cfg))
            meanwhile.enter_context(in_evaluation(cfg.common))
            meanwhile.enter_context(after_loading(_compare_with(cfg.common_eval.model_overrides)))
            if command == "validate":
                meanwhile.enter_context(after_loading(leave_out_empty_batches))
            return stock(cfg, *args, **kwargs)

    return main


@contextmanager
def one_shard(cfg: Any, command: str) -> Iterator[None]:
    """Meanwhile every data set that a task gives has only the sentences of ``--shard-id``: every N-th in their order,
    so that shards are alike in lengths, and each sentence is in one. Stock translates and validates everything in each.
    Results go to a folder of the shard, since fairseq gives all shards' files one name."""
    shards, shard = cfg.dataset.num_shards, cfg.dataset.shard_id
    check_shard(command, shards, shard, context=cfg.eval_lm.context_window)
    if shards == 1:
        yield
        return
    cfg.dataset.num_shards, cfg.dataset.shard_id = 1, 0
    if cfg.common_eval.results_path is not None:
        cfg.common_eval.results_path = str(Path(cfg.common_eval.results_path, f"shard-{shard}-of-{shards}"))
    whole = FairseqTask.dataset

    def dataset(self: Any, split: str) -> Any:
        found = whole(self, split)
        if "ordered_indices" not in vars(found):
            found.ordered_indices = _every_nth(found.ordered_indices, split, shards, shard)
        return found

    FairseqTask.dataset = dataset
    try:
        yield
    finally:
        FairseqTask.dataset = whole


def _compare_with(overrides: str) -> Callable[[Any, Any, Any], None]:
    """A function that logs names in ``--model-overrides`` that are no option of a checkpoint, which stock ignores."""

    def compare(models: Any, cfg: Any, task: Any) -> None:
        for name in ast.literal_eval(overrides):
            if not any(name in options for options in _groups(cfg)):
                logger.warning(f"--model-overrides: {name} has no effect, as it is no option of the checkpoint")

    return compare


def _groups(cfg: Any) -> Iterator[Any]:
    """The options of a checkpoint, group by group."""
    for options in (vars(cfg) if isinstance(cfg, Namespace) else cfg).values():
        if isinstance(options, Namespace):
            yield vars(options)
        elif isinstance(options, DictConfig):
            yield options


def _every_nth(ordered_indices: Callable[[], Any], split: str, shards: int, shard: int) -> Callable[[], Any]:
    def of_shard() -> Any:
        indices = ordered_indices()
        if len(indices) < shards:
            raise InputError(
                f"--num-shards ({shards}) is more than the {len(indices)} samples of {split}; give at most "
                f"--num-shards {len(indices)}."
            )
        return indices[shard::shards]

    return of_shard


def check_shard(command: str, shards: int, shard: int, *, context: int) -> None:
    """Refuse shards that do not exist, and those where a command has no use for them.

    Args:
        command: ``interactive``, say.
        shards: ``--num-shards``.
        shard: ``--shard-id``.
        context: ``--context-window``.

    Raises:
        InputError: with the options to change.
    """
    if shards < 1:
        raise InputError(f"--num-shards ({shards}) must be at least 1; leave it out to read everything.")
    if not 0 <= shard < shards:
        raise InputError(
            f"--shard-id ({shard}) must be at least 0 and below --num-shards ({shards}); shards count from 0."
        )
    if shards > 1 and command == "interactive":
        raise InputError("fairseq-interactive reads all of its input: split the input instead of giving --num-shards.")
    if shards > 1 and context > 0:
        raise InputError(
            f"--context-window ({context}) needs the samples before each one, which other shards have; leave out "
            "--num-shards or --context-window."
        )


def refuse_shards(dataset: Any) -> None:
    """Refuse ``--num-shards`` in training, where stock passes over it.

    Args:
        dataset: fairseq's options of data sets.

    Raises:
        InputError: there is more than one shard.
    """
    if dataset.num_shards > 1:
        raise InputError(
            f"--num-shards ({dataset.num_shards}) is for generation and evaluation; in training, processes divide the "
            "data among themselves: start several (docs/launching.md)."
        )
