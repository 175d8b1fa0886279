"""One process of a checked run: fairseq-train that reports losses and gradient norms, and dies when it must.

torch's launcher starts ``benchmarks.scaling.worker UPDATE WORDS...``: WORDS are fairseq-train's, and the last process
dies after UPDATE; 0 stands for never.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from fairseq import trainer
from fairseq_cli import train

from benchmarks.sharding import Recorder
from torchscale_fairseq import plugin

DEATH = "KILLED AT "
"""Comes before the time at which the process died, in seconds since 1970."""


def dying(step: Callable[..., Any], update: int) -> Callable[..., Any]:
    """``Trainer.train_step`` that kills the last process after an update."""

    def train_step(trainer: Any, *arguments: Any, **keywords: Any) -> Any:
        is_last = os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)
        if is_last and trainer.get_num_updates() == update:
            sys.stdout.write(f"{DEATH}{time.time()}\n")
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return step(trainer, *arguments, **keywords)

    return train_step


def main(update: str, *words: str) -> None:
    """Train in this process, and print the report that ``benchmarks.sharding.measured`` reads."""
    plugin.register()
    recorder = Recorder(torch.cuda.is_available() and "--cpu" not in words)
    step = recorder.updating(trainer.Trainer.train_step)
    trainer.Trainer.train_step = dying(step, int(update)) if int(update) else step
    sys.argv = ["fairseq-train", *words]
    train.cli_main()
    sys.stdout.write(recorder.report())


if __name__ == "__main__":
    main(*sys.argv[1:])
