"""Starting several processes, on the CPU too.

Stock fairseq counts CUDA devices to decide how many processes to start and which device each one gets, so that
without a GPU it refuses, divides by zero, or starts none.
"""

import logging
import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
from fairseq.distributed import utils as distributed_utils
from torch.multiprocessing.spawn import spawn

from torchscale_fairseq.hooks import running
from torchscale_fairseq.hooks.runs import preemption

logger = logging.getLogger(__name__)

_TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")


def launch_processes_on_cpu(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.distributed.utils.call_main`` that also starts processes without GPUs, over gloo."""

    def call_main(cfg: Any, main: Callable[..., Any], **kwargs: Any) -> Any:
        training = cfg.distributed_training
        _join_torchrun(training)
        on_gpu = torch.cuda.is_available() and not cfg.common.cpu
        alone = training.distributed_world_size == 1 and training.distributed_init_method is None
        if on_gpu or cfg.common.tpu or alone:
            with preemption.passing_on():
                return stock(cfg, main, **kwargs)

        if training.distributed_backend == "nccl":
            training.distributed_backend = "gloo"
        find_peers(training)
        if training.distributed_no_spawn:
            return distributed_utils.distributed_main(0, main, cfg, kwargs)

        first_rank, training.distributed_rank = training.distributed_rank, None
        processes = training.distributed_world_size - first_rank
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
        logger.info("starting %d processes on the CPU", processes)
        # fairseq's own function, since unpickling one of ours would import this package ahead of fairseq, which would
        # then import nothing from it as --user-dir
        start = distributed_utils.distributed_main
        with preemption.passing_on():
            return spawn(start, args=(main, cfg, {**kwargs, "start_rank": first_rank}), nprocs=processes)

    return call_main


def start_workers_as_one_process_does() -> None:
    """Let processes that fairseq-train has started start a loader's workers as it would in one process.

    They inherit the method ``spawn`` from torch. By it, a worker imports torch, fairseq and this package anew, and the
    next worker waits for that, in every epoch.
    """
    if running.command("train") is not None:
        forget_inherited_start_method()


def forget_inherited_start_method() -> None:
    """Start processes by the method of the operating system in a process that was itself started by ``spawn``."""
    if multiprocessing.parent_process() is not None:
        multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)


def _join_torchrun(training: Any) -> None:
    """Take the world size from torchrun. Stock does so only where it already expects several processes, which
    it does if one sees several GPUs; elsewhere each process would train alone, over the others' checkpoints."""
    if training.distributed_world_size == 1 and training.distributed_init_method is None:
        training.distributed_world_size = launched_processes()


def launched_processes() -> int:
    """The number of processes that torch's launcher has started, this one among them; 1 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _TORCHRUN) else 1


def find_peers(training: Any) -> None:
    """Fill in the init method: torchrun's, Slurm's (which needs --distributed-port), or this machine alone."""
    if training.distributed_init_method is not None:
        return
    if all(name in os.environ for name in _TORCHRUN):
        training.distributed_init_method = "env://"
        training.distributed_world_size = int(os.environ["WORLD_SIZE"])
        training.distributed_rank = int(os.environ["RANK"])
        training.distributed_no_spawn = True
    elif not (training.distributed_port > 0 and distributed_utils._infer_slurm_init(training, None)):
        port = training.distributed_port if training.distributed_port > 0 else _free_port()
        training.distributed_init_method = f"tcp://127.0.0.1:{port}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
