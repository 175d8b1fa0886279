"""Graceful shutdown on a signal: a checkpoint after the current update, in all processes, and an exit code.

Active where the environment has ``TORCHSCALE_SAVE_ON_SIGNAL=1``, as scripts/launch sets it. SIGUSR1, which Slurm sends
ahead of a time limit, means that the run is to go on in another job, and SIGTERM that it ends here; the exit code tells
them apart. Processes agree on the update after which they stop in the exchange of statistics that fairseq makes anyway.
"""

import logging
import math
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch.distributed as dist
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from torch.multiprocessing.spawn import ProcessExitedException

logger = logging.getLogger(__name__)

ASKED = "TORCHSCALE_SAVE_ON_SIGNAL"
EXIT_CODES = {signal.SIGUSR1: os.EX_TEMPFAIL, signal.SIGTERM: 128 + signal.SIGTERM}
"""75: the same command resumes from the checkpoint; 143: the code of a process that the signal ended."""


class StopRequested(Exception):
    """Processes have agreed to stop."""

    def __init__(self, reason: signal.Signals):
        super().__init__(f"stopping, since {reason.name} was received")
        self.reason = reason


def asked() -> bool:
    """Whether the environment requests a checkpoint on signals."""
    return os.environ.get(ASKED) == "1"


class Received:
    """The signals in EXIT_CODES that this process receives from now on. The workers of data loaders, which get those
    that a whole group of processes is sent, leave them to this process."""

    def __init__(self) -> None:
        self._numbers: set[signal.Signals] = set()
        if threading.current_thread() is not threading.main_thread():
            return
        for number in EXIT_CODES:
            signal.signal(number, lambda received, frame: self._numbers.add(signal.Signals(received)))
        multiprocessing.util.register_after_fork(self, lambda _: _end_with_the_parent())

    def counts(self) -> list[float]:
        """Per signal in EXIT_CODES, whether it was received; to be summed over processes."""
        return [float(number in self._numbers) for number in EXIT_CODES]


def _end_with_the_parent() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_CODES)

    def wait() -> None:
        while True:
            received = signal.sigwaitinfo(EXIT_CODES)
            if received.si_signo == signal.SIGTERM and received.si_pid == os.getppid():
                os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def agreed(sums: Sequence[Any]) -> signal.Signals | None:
    """Why to stop, if to stop, from the sums of ``Received.counts``."""
    return next((number for number, count in zip(EXIT_CODES, sums, strict=True) if float(count) > 0), None)


def save_when_told(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq_cli.train.validate_and_save``, which comes after each update. A run whose last update is done ends as
    usual, without what validation it had no time for."""

    def validate_and_save(
        cfg: Any, trainer: Any, task: Any, epoch_itr: Any, valid_subsets: list[str], end_of_epoch: bool
    ) -> Any:
        finished = trainer.get_num_updates() >= (cfg.optimization.max_update or math.inf)
        try:
            if not finished:
                trainer.stop_if_told()
            return stock(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)
        except StopRequested as stop:
            logger.warning(f"{stop} (update {trainer.get_num_updates()})")
            checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
            trainer.finish_pending_save()
            if finished:
                return [None], True
            _leave(cfg, stop.reason)

    return validate_and_save


def _leave(cfg: Any, reason: signal.Signals) -> NoReturn:
    """End this process after all others have got here, so that a launcher does not end the one that writes the
    checkpoint."""
    if cfg.checkpoint.write_checkpoints_asynchronously:
        PathManager.async_close()
    if dist.is_initialized():
        dist.barrier()
    saved = not (cfg.checkpoint.no_save or cfg.checkpoint.no_last_checkpoints)
    logger.warning(
        f"the same command goes on from {cfg.checkpoint.save_dir}/checkpoint_last.pt"
        if saved
        else "nothing was saved, as --no-save or --no-last-checkpoints asks"
    )
    sys.exit(EXIT_CODES[reason])


@contextmanager
def passing_on() -> Iterator[None]:
    """Meanwhile this process, which fairseq-train started and which trains nothing, passes the signals on to those that
    it has started, and ends with their exit code."""
    if not asked() or threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: Any) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, number)

    before = {number: signal.signal(number, pass_on) for number in EXIT_CODES}
    try:
        yield
    except ProcessExitedException as ended:
        if ended.exit_code not in EXIT_CODES.values():
            raise
        sys.exit(ended.exit_code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
