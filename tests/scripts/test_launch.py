"""scripts/launch: locally with real processes, on Slurm with stand-ins for srun and scontrol."""

import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.checkpoints import assert_same_weights
from tests.distributed.short_training import updates, words
from tests.fairseq_cli import ENVIRONMENT, REPOSITORY, USER_DIR, Finished, run_program, tiny_language_data
from torchscale_fairseq.hooks.runs import preemption

LAUNCH = REPOSITORY / "scripts" / "launch"
SRUN = """#!/usr/bin/env bash
# Two tasks on one node; signals go to the tasks, as slurmstepd sends them.
while [[ $1 == --* ]]; do shift; done
echo $$ >"$REQUEUED.srun"
pids=()
for rank in 0 1; do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & pids+=($!)
done
trap 'kill -USR1 "${pids[@]}"' USR1
code=0
for pid in "${pids[@]}"; do
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
  wait "$pid"; one=$?
  [ $one -le $code ] || code=$one
done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
case "$1" in
  show) printf '127.0.0.1\\nnode-b\\n' ;;
  requeue) echo "$2" >>"$REQUEUED" ;;
esac
"""
JOB = {"SLURM_JOB_ID": "70123", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "1"}


def failure(code: int) -> ChildFailedError:
    """As torch's launcher reports a process that ended with this code, or by a signal if it is negative."""
    return ChildFailedError("fairseq-train", {1: ProcessFailure(local_rank=1, pid=2, exitcode=code, error_file="")})


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Variables of a job, with the stand-ins on the path."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    path = os.pathsep.join((str(programs), str(Path(sys.executable).parent), os.environ["PATH"]))
    return {**JOB, "PATH": path, "VENV": str(tmp_path / "none"), "REQUEUED": str(tmp_path / "requeued")}


def job(environment: dict[str, str], *command: object) -> Finished:
    variables = {**os.environ, **ENVIRONMENT, **environment}
    line = ["bash", LAUNCH / "slurm.sbatch", *command]
    done = subprocess.run([str(w) for w in line], capture_output=True, text=True, env=variables, cwd=REPOSITORY)
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (75, True), (138, True), (143, False)])
def test_tasks_find_each_other_and_codes_requeue(code: int, requeued: bool, slurm: dict[str, str]) -> None:
    says = 'echo "$RANK of $WORLD_SIZE, $LOCAL_RANK, $MASTER_ADDR:$MASTER_PORT, $TORCHSCALE_SAVE_ON_SIGNAL"; exit '
    done = job(slurm, "bash", "-c", f"{says}{code}")
    assert done.returncode == code, done.output
    told = {line for line in done.stdout.splitlines() if " of " in line and "echo" not in line}
    assert told == {"0 of 2, 0, 127.0.0.1:30123, 1", "1 of 2, 1, 127.0.0.1:30123, 1"}
    log = Path(slurm["REQUEUED"])
    assert log.exists() == requeued and (not requeued or log.read_text() == "70123\n")


def test_dry_runs_say_what_they_would_do(slurm: dict[str, str]) -> None:
    done = job(slurm, "--dry-run", "fairseq-train", "data set").check()
    assert "sbatch option: --signal=USR1@300" in done.stdout and "fairseq-train 'data set'" in done.stdout
    assert 'exec "$@"\' \\\n    task fairseq-train' in done.stdout
    local = run_program([LAUNCH / "local.sh", "--dry-run", "--processes", 3, "fairseq-train", "DATA"]).check()
    shown = local.stdout.replace("\\\n", "").split()
    assert shown[:2] == ["python", str(LAUNCH / "torchrun.py")]
    assert shown[2:] == ["--standalone", "--nproc-per-node", "3", "--no-python", "fairseq-train", "DATA"]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("local.sh", "", "it needs a command"),
        ("local.sh", "--processes 0 true", "--processes takes a whole number above 0, not '0'"),
        ("local.sh", "--wrong", "unknown option '--wrong'"),
        ("slurm.sbatch", "", "it needs a command"),
        ("slurm_array_eval.sbatch", "a.pt -- echo {}", "it needs --output DIR"),
        ("slurm_array_eval.sbatch", "--output x a.pt -- echo", "a command with {} in it"),
        ("slurm_array_eval.sbatch", "--output x -- echo {}", "it needs checkpoints"),
    ],
)
def test_what_is_missing_is_named(script: str, arguments: str, message: str) -> None:
    done = run_program(["bash", LAUNCH / script, *shlex.split(arguments)])
    assert done.returncode == 2 and message in done.last_line and "--help" in done.last_line


@pytest.mark.parametrize("script", ["local.sh", "slurm.sbatch", "slurm_array_eval.sbatch"])
def test_help(script: str) -> None:
    assert "--dry-run" in run_program(["bash", LAUNCH / script, "--help"]).check().stdout


def test_array_shares_checkpoints_out_and_skips_what_is_done(tmp_path: Path) -> None:
    """Task 3 of 3 to 4: every other checkpoint; one that fails leaves no result."""
    names = [tmp_path / f"checkpoint{n}.pt" for n in range(4)]
    for path in names[:2]:
        path.write_text("x")
    slow_tee = tmp_path / "bin" / "tee"  # writes after the command that it listens to has ended
    slow_tee.parent.mkdir()
    slow_tee.write_text(f'#!/bin/sh\nsleep 0.2\nexec {shutil.which("tee")} "$@"\n')
    slow_tee.chmod(0o755)
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "2"}
    array["PATH"] = f"{slow_tee.parent}:{os.environ['PATH']}"
    line = [
        "bash",
        LAUNCH / "slurm_array_eval.sbatch",
        "--output",
        tmp_path / "results",
        *names,
        "--",
        "wc",
        "-c",
        "{}",
    ]
    done = run_program(line, environment=array)
    assert done.returncode == 1 and f"{names[2]} could not be evaluated" in done.stderr
    results = list((tmp_path / "results").glob("*.txt"))
    assert [f.read_text() for f in results] == [f"1 {names[0]}\n"] and results[0].name.endswith("-checkpoint0.txt")
    names[2].write_text("xyz")
    again = run_program(line, environment=array).check()
    assert f"{results[0]} is there already" in again.stdout and f"3 {names[2]}" in again.stdout


def test_local_processes_train_together(tmp_path: Path) -> None:
    """Two real ones, over gloo."""
    arguments = [*words(tiny_language_data(tmp_path), tmp_path / "run"), "--max-update", 2, "--user-dir", USER_DIR]
    environment = {"VENV": str(tmp_path / "none")}
    done = run_program([LAUNCH / "local.sh", "--processes", 2, "fairseq-train", *arguments], environment=environment)
    assert "training on 2 devices" in done.check().output
    assert updates(tmp_path / "run") == 2


def told(
    line: list[object], environment: dict[str, str], log: Path, number: signal.Signals, srun: Path | None = None
) -> int:
    """The exit code of a command that gets a signal when it has done three updates; with srun, which wrote its number
    there, getting it in the command's stead."""
    variables = {**os.environ, **ENVIRONMENT, **environment}
    with log.open("w") as file:
        words = [str(word) for word in line]
        process = subprocess.Popen(words, stdout=file, stderr=file, env=variables, start_new_session=True)
        while "num_updates=3," not in log.read_text() and process.poll() is None:
            time.sleep(0.2)
        os.kill(int(srun.read_text()) if srun else process.pid, number)
        return process.wait()


@pytest.mark.parametrize(
    ("ending", "asked", "code"),
    [
        (None, "1", 0),
        (SignalException("", signal.SIGTERM), "1", 143),
        (SignalException("", signal.SIGUSR1), "1", 75),
        (SignalException("", signal.SIGUSR1), "0", 138),
        (SignalException("", signal.SIGINT), "1", 130),
        (failure(7), "1", 7),
        (failure(-9), "1", 137),
    ],
    ids=["success", "SIGTERM", "SIGUSR1", "SIGUSR1-unasked", "SIGINT", "exit-7", "killed"],
)
def test_exit_code_is_that_of_the_processes(
    ending: Exception | None, asked: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(words: list[str]) -> None:
        if ending is not None:
            raise ending

    launcher = runpy.run_path(str(LAUNCH / "torchrun.py"))
    monkeypatch.setitem(launcher["launch"].__globals__, "main", run)
    monkeypatch.setenv(preemption.ASKED, asked)
    assert launcher["launch"](["fairseq-train"]) == code


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_local_run_goes_on_after_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    run, path = tmp_path / "run", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"VENV": str(tmp_path / "none"), "PATH": path}
    arguments = [*words(tiny_language_data(tmp_path), run), "--max-update", 20000, "--user-dir", USER_DIR]
    line = [LAUNCH / "local.sh", "--processes", 2, "fairseq-train", *arguments]
    assert told(line, environment, tmp_path / "log", number) == preemption.EXIT_CODES[number]
    text = (tmp_path / "log").read_text()
    assert f"stopping, since {number.name} was received" in text, text[-3000:]
    assert "Traceback" not in text
    done = updates(run)
    assert done >= 3
    last = run_program([*line, "--max-update", done + 2], environment=environment).check()
    assert f"num_updates={done + 2}," in last.output and updates(run) == done + 2


@pytest.mark.slow
def test_slurm_job_is_requeued_and_goes_on(slurm: dict[str, str], tmp_path: Path) -> None:
    """The weights of a run that Slurm interrupted, and those of one that it did not."""
    data = tiny_language_data(tmp_path)
    line = ["bash", LAUNCH / "slurm.sbatch", "fairseq-train", "--user-dir", USER_DIR, "--max-epoch", 40]
    arguments = [*words(data, tmp_path / "run"), "--max-update", 200]
    srun = Path(slurm["REQUEUED"] + ".srun")
    assert told([*line, *arguments], slurm, tmp_path / "log", signal.SIGUSR1, srun) == 75
    assert Path(slurm["REQUEUED"]).read_text() == "70123\n"
    assert 3 <= updates(tmp_path / "run") < 200
    job(slurm, *line[2:], *arguments).check()
    job(slurm, *line[2:], *words(data, tmp_path / "whole"), "--max-update", 200).check()
    assert_same_weights(tmp_path / "run", tmp_path / "whole", 0)
