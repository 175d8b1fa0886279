"""Signals during training: a checkpoint at the next update, in all processes alike, and the exit code that says why."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.checkpoints import assert_same_weights
from tests.distributed.short_training import UPDATES, updates, words
from tests.fairseq_cli import Finished, run_processes, run_program, tiny_language_data
from torchscale_fairseq.hooks.runs.preemption import ASKED

ONE_GETS_IT = """
import os
from fairseq.trainer import Trainer
def at_update_4(step):
    def train_step(self, *arguments):
        if self.get_num_updates() == {after} and os.environ["RANK"] == {rank!r}:
            import multiprocessing, subprocess
            workers = [str(worker.pid) for worker in multiprocessing.active_children()]
            subprocess.run(["kill", "-s", {signal!r}, *workers, str(os.getpid())])
        return step(self, *arguments)
    return train_step
Trainer.{step} = at_update_4(Trainer.{step})
"""


Whole = Callable[[int], Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_data(tmp_path_factory.mktemp("preemption-data"))


def train(processes: int, data: Path, folder: Path, before: str = "", asked: str = "1") -> Finished:
    return run_processes(processes, "train", words(data, folder), before=before, environment={ASKED: asked})


def told(signal: str, *, after: int, rank: int = 0, step: str = "train_step") -> str:
    return ONE_GETS_IT.format(signal=signal.removeprefix("SIG"), after=after, rank=str(rank), step=step)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Runs that nothing disturbs, by their number of processes."""

    @cache
    def make(processes: int) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        train(processes, data, folder).check()
        return folder

    return make


SIGTERM, SIGUSR1 = ("SIGTERM", "train_step", 143, 5), ("SIGUSR1", "train_step", 75, 3)
IN_VALIDATION = ("SIGUSR1", "valid_step", 75, 4)


@pytest.mark.parametrize(
    ("processes", "signal", "step", "code", "after"),
    [
        (1, *SIGUSR1),
        (2, *SIGTERM),
        (2, *IN_VALIDATION),
        pytest.param(1, *SIGTERM, marks=pytest.mark.slow),
        pytest.param(1, *IN_VALIDATION, marks=pytest.mark.slow),
        pytest.param(2, *SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_stops_and_goes_on(
    processes: int, signal: str, step: str, code: int, after: int, whole: Whole, data: Path, tmp_path: Path
) -> None:
    """The last process is told, and so are the workers of its data loader; it is making the fourth update, or
    validating after it, or the sixth, with two processes in the second epoch."""
    made = after + (step == "train_step")
    done = train(processes, data, tmp_path, told(signal, after=after, rank=processes - 1, step=step))
    assert done.returncode == code, done.output
    assert f"stopping, since {signal} was received (update {made})" in done.output
    assert updates(tmp_path) == made
    assert f"goes on from {tmp_path}/checkpoint_last.pt" in done.output
    train(processes, data, tmp_path).check()
    assert_same_weights(whole(processes), tmp_path, 0)


def test_a_finished_run_just_ends(data: Path, tmp_path: Path) -> None:
    done = train(1, data, tmp_path, told("SIGUSR1", after=UPDATES - 1)).check()
    assert updates(tmp_path) == UPDATES and "done training" in done.output


def test_signals_end_a_run_that_was_not_asked_to_save(data: Path, tmp_path: Path) -> None:
    done = train(1, data, tmp_path, told("SIGTERM", after=3), asked="0")
    assert done.returncode == 1 and not (tmp_path / "checkpoint_last.pt").exists()


@pytest.mark.slow
def test_processes_that_fairseq_starts_are_told(data: Path, tmp_path: Path) -> None:
    """--distributed-world-size: the parent passes the signal on and ends with their code."""
    start = "import subprocess, sys, time, signal\np = subprocess.Popen(sys.argv[1:])\n"
    wait = f"import pathlib\nwhile not pathlib.Path({str(tmp_path)!r}, 'log').exists() or "
    wait += f"'num_updates=3' not in pathlib.Path({str(tmp_path)!r}, 'log').read_text(): time.sleep(0.1)\n"
    code = start + wait + "p.send_signal(signal.SIGUSR1)\nsys.exit(p.wait())"
    arguments = [*words(data, tmp_path), "--max-update", 100000, "--log-file", tmp_path / "log"]
    arguments += ["--user-dir", "torchscale_fairseq", "--distributed-world-size", 2]
    done = run_program(["python", "-c", code, "fairseq-train", *arguments], environment={ASKED: "1"})
    assert done.returncode == 75, done.output
    assert updates(tmp_path) >= 3
