"""Generation and evaluation by a model of which several processes hold slices: --ddp-backend fully_sharded.

Every process runs the command on all data, as a single process would, and gathers each layer when it computes, so that
processes keep step. The first one writes the results.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fairseq import checkpoint_utils, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from torch import Tensor, nn

from torchscale_fairseq.checkpoints import distributed
from torchscale_fairseq.checkpoints.reading import Parts
from torchscale_fairseq.core.deferred_values import DeferredValues
from torchscale_fairseq.core.parallel.fully_sharded import CuttingCopies, shard_layers
from torchscale_fairseq.hooks.runs.launch import launched_processes
from torchscale_fairseq.hooks.sharding.building import is_ours
from torchscale_fairseq.hooks.sharding.options import is_fully_sharded


@contextmanager
def sharded_over_processes(cfg: Any) -> Iterator[None]:
    """Meanwhile, models that fairseq loads are sharded over all processes, if a command requests it.

    Args:
        cfg: of the command; changed so that each process takes itself for the only one.
    """
    if not is_fully_sharded(cfg) or max(launched_processes(), cfg.distributed_training.distributed_world_size) == 1:
        yield
        return
    device = _join(cfg)
    training, stock = cfg.distributed_training, checkpoint_utils.load_model_ensemble_and_task
    training.distributed_world_size, training.distributed_rank = 1, 0
    checkpoint_utils.load_model_ensemble_and_task = partial(_load_sharded, device)
    try:
        with nullcontext() if dist.get_rank() == 0 else _silence(cfg):
            yield
    finally:
        checkpoint_utils.load_model_ensemble_and_task = stock


def _join(cfg: Any) -> torch.device:
    """This process's device, when it knows of the others: fairseq-generate does not look for any."""
    on_gpu = torch.cuda.is_available() and not cfg.common.cpu
    if not dist.is_initialized():
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if on_gpu else "gloo")
        atexit.register(dist.destroy_process_group)
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


@contextmanager
def _silence(cfg: Any) -> Iterator[None]:
    cfg.common_eval.results_path = None
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def _load_sharded(
    device: torch.device,
    filenames: Sequence[str],
    arg_overrides: dict[str, Any] | None = None,
    task: Any = None,
    strict: bool = True,
    *_: Any,
    **__: Any,
) -> tuple[list[nn.Module], Any, Any]:
    """``load_model_ensemble_and_task`` of models whose layers are sharded."""
    models, cfg = [], None
    for filename in filenames:
        folders: list[Path] = []
        parts = Parts(load=partial(_note, folders))
        state = checkpoint_utils.load_checkpoint_to_cpu(filename, arg_overrides, parts=parts)
        cfg = state["cfg"] if state.get("args") is None else convert_namespace_to_omegaconf(state["args"])
        task = task or tasks.setup_task(cfg.task, from_checkpoint=True)
        if "task_state" in state:
            task.load_state_dict(state["task_state"])
        with DeferredValues("cuda").building() if is_ours(cfg.model) else nullcontext():
            model = task.build_model(cfg.model, from_checkpoint=True)
        model.set_num_updates(state["optimizer_history"][-1]["num_updates"])
        shard_layers(model, device)
        _fill(model, state["model"], folders, partial(model.load_state_dict, strict=strict, model_cfg=cfg.model))
        models.append(model)
    return models, cfg, task


def _note(folders: list[Path], folder: Path) -> dict[str, Tensor]:
    """A loader that reads nothing yet: the tensors of a folder wait until the model is there."""
    folders.append(folder)
    return {}


def _fill(
    model: nn.Module, state: dict[str, Any], folders: Sequence[Path], load_state_dict: Callable[[dict[str, Any]], Any]
) -> None:
    """Read this process's slices of a model.

    Args:
        model: sharded.
        state: whole, unless its tensors are in a folder.
        folders: this one.
        load_state_dict: the model's.
    """
    for folder in folders:
        there = distributed.described(folder)
        own = {f"model.{name}": value for name, value in model.state_dict().items()}
        if all(name in there and there[name][0] == value.shape for name, value in own.items()):
            distributed.read_into(own, folder)
        else:  # for the error that names what differs
            own = {n: torch.empty(size, dtype=dtype) for n, (size, dtype) in there.items() if n.startswith("model.")}
            distributed.read_into(own, folder, alone=True)
        state = {**state, **{name.removeprefix("model."): value for name, value in own.items()}}
    with CuttingCopies():
        load_state_dict(state)
