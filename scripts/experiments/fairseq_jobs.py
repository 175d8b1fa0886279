"""Runs many of fairseq's commands side by side, on the CPU or on one or more GPUs, until none is left or time is up."""

import argparse
import itertools
import math
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.experiments.common import ROOT
from torchscale_fairseq.tools.options import positive

ONE_THREAD = {"OMP_NUM_THREADS": "1", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
"""Environment of each command: one of many on the machine, with TF32 products where there is a GPU."""


def parser_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every experiment that consists of jobs.

    Args:
        name: of the experiment.
        description: the docstring of its module.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--work-dir", type=Path, default=ROOT / "runs" / name, metavar="DIR", help="logs and checkpoints")
    add("--gpus", type=int, default=0, metavar="N", help="over which trainings are distributed; default: 0, the CPU")
    add("--processes", type=positive, default=1, metavar="N", help="trainings at the same time; default: 1")
    return parser


def add_report(parser: argparse.ArgumentParser) -> None:
    """Let the command line say whether to train and report, or to draw the figure of a report."""
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--output", type=Path, metavar="DIR", help="train, and write the report and its figure here")
    task.add_argument("--plot-only", type=Path, metavar="JSON", help="draw the figure of this report, next to it")


@dataclass(frozen=True)
class Job:
    """One command of fairseq's."""

    name: str
    command: tuple[str, ...]
    """As it is typed, ``fairseq-train`` first."""
    log: Path
    """Where what it prints goes."""
    cost: float
    """Jobs start in order of their cost, the highest first."""
    done: Callable[["Job", int], Iterable["Job"]]
    """From the job and its exit status to the jobs that follow from it."""


class Jobs:
    """A queue of jobs, and the processes that work on it.

    Args:
        processes: jobs that run at the same time.
        gpus: over which they are distributed in turn; 0 for the CPU.
        deadline: ``time.monotonic()`` after which no job starts and running ones end; their ``done`` is not called.
    """

    def __init__(self, processes: int, gpus: int, deadline: float = float("inf")):
        self._queue: queue.PriorityQueue[tuple[float, int, Job]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._unfinished = 0
        self._changed = threading.Condition()
        self._devices = [str(number % gpus) if gpus else "" for number in range(processes)]
        self._deadline = deadline
        self.left: list[str] = []
        """Names of the jobs that did not start, or did not finish."""

    def run(self, jobs: Iterable[Job]) -> None:
        """Run jobs, and those that follow from them."""
        self._add(jobs)
        threads = [threading.Thread(target=self._work, args=(device,)) for device in self._devices]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.left += [job.name for *_, job in self._queue.queue]

    def _add(self, jobs: Iterable[Job]) -> None:
        with self._changed:
            for job in jobs:
                self._queue.put((-job.cost, next(self._order), job))
                self._unfinished += 1
            self._changed.notify_all()

    def _work(self, device: str) -> None:
        while (job := self._next()) is not None:
            status = self._execute(job, device)
            if status is None:
                self.left.append(job.name)
            else:
                with self._changed:
                    following = list(job.done(job, status))
                self._add(following)
            with self._changed:
                self._unfinished -= 1
                self._changed.notify_all()

    def _next(self) -> Job | None:
        """The job to start now, None when there will be none."""
        with self._changed:
            while self._unfinished and time.monotonic() < self._deadline:
                if not self._queue.empty():
                    return self._queue.get()[-1]
                self._changed.wait(timeout=1)
        return None

    def _execute(self, job: Job, device: str) -> int | None:
        """Run a command to its end; its exit status, or None if time was up."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("w") as log:
            process = subprocess.Popen(
                runnable(job.command), stdout=log, stderr=subprocess.STDOUT, env=environment(device)
            )
            try:
                return process.wait(max(0.0, min(self._deadline - time.monotonic(), threading.TIMEOUT_MAX)))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                return None


def runnable(command: tuple[str, ...]) -> list[str]:
    """``fairseq-train`` and its siblings through the Python that runs this, wherever its scripts lie."""
    module = command[0].replace("fairseq-", "fairseq_cli.").replace("-", "_")
    return [sys.executable, "-m", module, *command[1:]]


def environment(device: str) -> Mapping[str, str]:
    return {**os.environ, **ONE_THREAD, "CUDA_VISIBLE_DEVICES": device}


def training_result(log: str) -> dict[str, float | None]:
    """What the log of a training (``--log-format json``) says at its end.

    Returns:
        nll of the validation set and of the last epoch's training in bits per piece, and the parameters, experts
        included; None where the log ends before.
    """

    def last(pattern: str) -> float | None:
        found = re.findall(pattern, log)
        value = float(found[-1].replace(",", "")) if found else math.nan
        return value if math.isfinite(value) else None

    return {
        "nll": last(r'"valid_nll_loss": "([^"]+)"') or last(r'"valid_loss": "([^"]+)"'),
        "training_nll": last(r'"train_nll_loss": "([^"]+)"') or last(r'"train_loss": "([^"]+)"'),
        "parameters": (last(r"num\. shared model params: ([\d,]+)") or 0)
        + (last(r"num\. expert model params: ([\d,]+)") or 0),
    }
