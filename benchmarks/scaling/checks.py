"""Small runs whose figures are known: equal losses and norms, resumed checkpoints, and a process that is killed."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.limited import RunError, output_of, run_within
from benchmarks.report import DisagreementError
from benchmarks.scaling.launch import ADAM, Place
from benchmarks.scaling.rows import TINY_HEADS
from benchmarks.scaling.worker import DEATH
from benchmarks.sharding import LOGGED_AT_ONCE, SHARDED, Measured, measured

ALLOWED = 1e-4
"""Largest relative difference of a loss or norm: sums of float32 in another order, over six updates."""
UPDATES, SAVED = 6, 3
"""Updates of a run, and the update after which its checkpoint is resumed."""
KILLED, LAST = 5, 8
"""Updates after which a process dies, and after which the resumed run ends. Checkpoints are due after 2 and 4; the
second one waits until the first one is complete."""
SOON = 60
"""Seconds in which a job must end after one of its processes died."""
SECONDS = 150
"""Time limit of each run."""
TOKENS = ["--tokens-per-sample", "64", "--batch-size", "2"]
STEPS = [*ADAM, "1e-3", "--adam-eps", "1e-3"]
"""Adam with an epsilon above the rounding of gradients, which it would magnify."""
GPT = ["--arch", "gpt_deepnorm_small", *TOKENS]
KINDS = {
    "ddp": GPT,
    "sharded": [*GPT, *SHARDED],
    "experts": [*GPT, "--moe-freq", "2", "--use-xmoe", "--moe-gating-use-fp32", "--moe-expert-count", "8"],
    "sequences": ["--arch", "longnet_small", "--seq-parallel", "--tokens-per-sample", "256", "--batch-size", "2"],
}
TITLES = {
    "ddp": "DDP",
    "sharded": "fully sharded",
    "experts": "X-MoE, 8 experts split over the processes",
    "sequences": "longnet --seq-parallel",
}


@dataclass(frozen=True)
class Check:
    """Runs that must agree.

    Args:
        name: for the command line.
        title: of its line in the table.
        run: takes the numbers of processes and the place, and returns the finding.
    """

    name: str
    title: str
    run: Callable[[list[int], Place], str]


def words(place: Place, kind: str, batches: int, updates: int, *more: str) -> list[str]:
    """Options of a run of this kind in which each process computes this many batches per update."""
    accumulated = [] if kind == "sequences" else ["--update-freq", str(batches)]
    options = [*KINDS[kind], *(TINY_HEADS if place.toy else []), *STEPS, *accumulated, *LOGGED_AT_ONCE]
    return [*options, "--log-format", "none", "--max-update", str(updates), *more]


def worker(place: Place, processes: int, options: list[str], *, dies_after: int = 0) -> list[str]:
    """The command of a run that reports losses and norms."""
    return place.command(processes, ["benchmarks.scaling.worker", str(dies_after)], options)


def train(place: Place, name: str, processes: int, options: list[str]) -> Measured:
    """Losses and norms of a run.

    Raises:
        RunError: it failed, or took too long.
    """
    command = worker(place, processes, options)
    text = output_of(SECONDS, command, place.logs / f"{name}-{processes}.log", environment=place.environment)
    found = measured(text)
    assert found is not None, "a worker that ends reports its figures"
    return found


def worst_difference(found: Measured, expected: Measured, *, after: int = 0) -> float:
    """The largest relative difference of losses and norms.

    Args:
        found: a run.
        expected: another one, which made ``after`` further updates before.
        after: number of updates.

    Raises:
        DisagreementError: the numbers of updates differ, or the figures differ by more than ``ALLOWED``.
    """
    pairs = [*zip(found.losses, expected.losses[after:], strict=False)]
    pairs += zip(found.norms, expected.norms[after:], strict=False)
    if len(found.losses) != len(expected.losses) - after:
        raise DisagreementError(f"{len(found.losses)} updates instead of {len(expected.losses) - after}")
    differences = [abs(a - b) / abs(b) for a, b in pairs]
    if not all(difference <= ALLOWED for difference in differences):  # NaN neither
        raise DisagreementError(f"losses and norms differ by up to {max(differences):.1e}, allowed {ALLOWED:.0e}")
    return max(differences)


def equal(kind: str, processes: list[int], place: Place) -> str:
    """Losses and norms of the same batches with each number of processes."""
    runs = {n: words(place, kind, max(processes) // n, UPDATES, "--no-save") for n in processes}
    first, *others = [train(place, f"equal-{kind}", n, options) for n, options in runs.items()]
    worst = max(worst_difference(run, first) for run in others)
    return f"losses and norms of {_and(processes)} processes differ by at most {worst:.1e} (allowed {ALLOWED:.0e})"


def resume(kind: str, processes: list[int], place: Place) -> str:
    """Losses and norms of half of the processes and of one, which resume a checkpoint of all."""
    most, name = max(processes), f"resume-{kind}"
    folder = place.checkpoints / name
    saving = ["--save-interval-updates", str(SAVED), "--no-epoch-checkpoints", "--save-dir", str(folder)]
    whole = train(place, name, most, words(place, kind, 1, UPDATES, *saving))
    resuming = ["--restore-file", str(folder / f"checkpoint_1_{SAVED}.pt"), "--no-save"]
    fewer = sorted({most // 2, 1})
    runs = {n: words(place, kind, most // n, UPDATES, *resuming) for n in fewer}
    found = [train(place, name, n, options) for n, options in runs.items()]
    worst = max(worst_difference(run, whole, after=SAVED) for run in found)
    return (
        f"a checkpoint of {most} processes resumed on {_and(fewer)}: losses and norms differ by at most {worst:.1e} "
        f"(allowed {ALLOWED:.0e})"
    )


def killed(processes: list[int], place: Place) -> str:
    """How soon a job ends whose last process is killed, and the update at which its next start resumes.

    Raises:
        RunError: it ends too late or without the message, or does not resume.
    """
    most, folder = max(processes), place.checkpoints / "killed"
    saving = ["--save-interval-updates", "2", "--async-checkpoint", "--no-epoch-checkpoints", "--save-dir", str(folder)]
    options, log = words(place, "sharded", 1, LAST, *saving), place.logs / "killed.log"
    command = worker(place, most, options, dies_after=KILLED)
    status = run_within(SECONDS, command, log, environment=place.environment)
    ended, text = time.time(), log.read_text()
    death = re.search(rf"{DEATH}([\d.]+)", text)
    message = re.search(r"Signal 9 \(SIGKILL\) received by PID", text)
    if not status or death is None or message is None:
        raise RunError(f"the job ended with status {status} and without the message of its killed process")
    seconds = ended - float(death[1])
    if seconds > SOON:
        raise RunError(f"the job ended {seconds:.0f} s after a process was killed, allowed {SOON} s")
    left = len(train(place, "killed-resumed", most, options).losses)
    if left >= LAST:
        raise RunError("the next start did not resume the asynchronous checkpoint")
    return (
        f"killed after update {KILLED}: {most} processes ended with its message in {seconds:.1f} s, and resumed after "
        f"update {LAST - left}"
    )


def _and(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f"{' and ' * (len(numbers) > 1)}{numbers[-1]}"


CHECKS = [
    *(Check(f"equal-{kind}", f"equal figures, {TITLES[kind]}", partial(equal, kind)) for kind in KINDS),
    *(Check(f"resume-{k}", f"other numbers resume, {TITLES[k]}", partial(resume, k)) for k in ("sharded", "experts")),
    Check("killed", "a killed process, fully sharded, --async-checkpoint", killed),
]
