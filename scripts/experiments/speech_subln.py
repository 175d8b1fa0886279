"""SubLN in speech recognition: s2t_magneto_small with it and without it, at five learning rates with two seeds each.

Without it, the model is pre-norm with the usual initial values. fairseq-hydra-train trains each model on the same
batches, and fairseq-generate gives its word error rate on the test set.

    scripts/quickstart_speech.sh    # makes the data
    python -m scripts.experiments.speech_subln --gpus 1 --processes 10 --output docs/claims
"""

import argparse
import json
import re
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from scripts.experiments.common import (
    COLOURS,
    NO_MATPLOTLIB,
    ROOT,
    InputError,
    Result,
    has_matplotlib,
    machine,
    plot,
    versions,
)
from scripts.experiments.fairseq_jobs import Job, Jobs, add_report, parser_of, training_result
from torchscale_fairseq.core.files import write_atomically
from torchscale_fairseq.core.reporting import run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "speech_subln"
NORMS = {"SubLN": ("true", "blue"), "pre-LN": ("false", "orange")}
"""Value of model.subln, and colour."""
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
SEEDS = (1, 2)
MODEL = (
    "++model.dropout=0.1 ++model.attention_dropout=0 ++model.activation_dropout=0 "
    "++model.conv_kernel_sizes=\\'5,5,5\\' ++model.conv_channels=256"
)


@dataclass(frozen=True)
class Run:
    """One training."""

    norm: str
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.norm}-{self.learning_rate:g}-{self.seed}"


class Study:
    """All trainings, and the results so far.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self.results: list[Result] = []
        """Settings of each run, and what was measured."""

    def jobs(self) -> Iterator[Job]:
        for seed in SEEDS:
            for rate in self._options.rates:
                for run in (Run(norm, rate, seed) for norm in NORMS):
                    log = self._options.work_dir / run.name / "train.log"
                    yield Job(run.name, train_command(run, self._options), log, 1.0, partial(self._trained, run))

    def _trained(self, run: Run, job: Job, status: int) -> Iterator[Job]:
        result = {**asdict(run), **training_result(job.log.read_text()), "status": status, "wer": None}
        if status:
            self._keep(result)
        else:
            command = generate_command(run, self._options)
            log = job.log.with_name("generate.log")
            yield Job(f"{run.name}-generate", command, log, 2.0, partial(self._generated, result))

    def _generated(self, result: Result, job: Job, status: int) -> Iterator[Job]:
        found = re.findall(r"WER: ([\d.]+)", job.log.read_text())
        self._keep({**result, "status": status, "wer": float(found[-1]) if found else None})
        for checkpoint in job.log.parent.glob("*.pt"):
            checkpoint.unlink()
        yield from ()

    def _keep(self, result: Result) -> None:
        print(result, flush=True)
        self.results.append(result)
        write(self.results, self._options)  # now, since a run may be cut off


def train_command(run: Run, options: argparse.Namespace) -> tuple[str, ...]:
    """fairseq-hydra-train, because no flag of fairseq-train switches SubLN off."""
    subln, _ = NORMS[run.norm]
    words: list[Any] = ["fairseq-hydra-train", "--config-dir", ROOT / "torchscale_fairseq/config"]
    words += ["--config-name", "s2t_magneto_small", f"common.user_dir={ROOT / 'torchscale_fairseq'}"]
    words += [f"task.data={options.data.resolve()}", f"++model.subln={subln}", *shlex.split(MODEL)]
    words += [f"optimization.lr=[{run.learning_rate:g}]", f"optimization.max_update={options.updates}"]
    words += ["lr_scheduler._name=polynomial_decay", f"++lr_scheduler.total_num_update={options.updates}"]
    words += [f"lr_scheduler.warmup_updates={options.updates // 8}", f"dataset.max_tokens={options.max_tokens}"]
    words += ["dataset.num_workers=1", f"++common.seed={run.seed}", f"++common.cpu={str(not options.gpus).lower()}"]
    # Measured once, at the end; the checkpoint serves fairseq-generate alone.
    words += [f"++dataset.validate_interval={10**6}", f"++checkpoint.save_interval={10**6}"]
    words += ["++checkpoint.no_save_optimizer_state=true", "common.log_format=json", "common.tensorboard_logdir=null"]
    folder = (options.work_dir / run.name).resolve()
    words += [f"checkpoint.save_dir={folder}", f"hydra.run.dir={folder}"]
    return tuple(map(str, words))


def generate_command(run: Run, options: argparse.Namespace) -> tuple[str, ...]:
    words: list[Any] = ["fairseq-generate", options.data, "--user-dir", ROOT / "torchscale_fairseq"]
    words += ["--task", "speech_to_text", "--path", options.work_dir / run.name / "checkpoint_last.pt"]
    words += ["--gen-subset", "test", "--beam", 5, "--max-len-a", 0.1, "--max-len-b", 10, "--max-tokens", 12000]
    words += ["--scoring", "wer", "--num-workers", 0, *([] if options.gpus else ["--cpu"])]
    return tuple(map(str, words))


def main() -> NoReturn:
    """Train or draw, as the command line says, and end the process with its exit code."""
    options = parse_options()
    if options.plot_only is None:
        run_command(partial(conduct, options))
    run_command(partial(plot, NAME, draw, options.plot_only))


def parse_options() -> argparse.Namespace:
    parser = parser_of(NAME, __doc__)
    add_report(parser)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT / "data/spoken.en.features", metavar="DIR", help="the prepared speech")
    add("--updates", type=int, default=800, metavar="N", help="of each training; default: 800")
    add("--max-tokens", type=int, default=6000, metavar="N", help="frames of a batch; default: 6000")
    add("--small", action="store_true", help="one rate and 4 updates")
    options = parser.parse_args()
    options.rates, options.start = RATES, time.monotonic()
    if options.small:
        options.updates, options.rates = 4, RATES[:1]
    return options


def conduct(options: argparse.Namespace) -> None:
    """Train, recognise, write the report and draw its figure."""
    if not (options.data / "config.yaml").exists():
        raise InputError(f"--data {options.data} has no prepared speech; --help shows the command that makes it")
    Jobs(options.processes, options.gpus).run(Study(options).jobs())
    path = options.output / f"{NAME}.json"
    if has_matplotlib():
        plot(NAME, draw, path)
    else:
        print(f"no figure: {NO_MATPLOTLIB}, then --plot-only {path}")


def write(results: list[Result], options: argparse.Namespace) -> None:
    """Write the report."""
    report = {
        "experiment": NAME,
        "command": shlex.join(["python", "-m", f"scripts.experiments.{NAME}", *sys.argv[1:]]),
        "machine": machine("cuda" if options.gpus else "cpu"),
        "versions": versions(),
        "seconds": round(time.monotonic() - options.start, 1),
        "updates": options.updates,
        "max_tokens": options.max_tokens,
        "runs": sorted(results, key=lambda run: (run["norm"], run["learning_rate"], run["seed"])),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    with write_atomically(options.output / f"{NAME}.json") as scratch:
        scratch.write_text(json.dumps(report, allow_nan=False, indent=1) + "\n")


def draw(report: Result) -> "Figure":
    """Word error rate and validation loss by learning rate: a dot per seed, a line through their means."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 4.2))
    titles = {"wer": "word error rate on the test set (%)", "nll": "validation nll (bits per piece)"}
    for panel, (measured, title) in zip(panels, titles.items(), strict=True):
        for norm, (_, colour) in NORMS.items():
            points: dict[float, list[float]] = {}
            for run in report["runs"]:
                if run["norm"] == norm and run[measured] is not None:
                    points.setdefault(run["learning_rate"], []).append(run[measured])
            means = {rate: statistics.mean(values) for rate, values in sorted(points.items())}
            panel.plot(list(means), list(means.values()), color=COLOURS[colour], label=norm)
            for rate, values in points.items():
                panel.plot([rate] * len(values), values, "o", markersize=4, color=COLOURS[colour])
        panel.set(xscale="log", xlabel="highest learning rate", ylabel=title)
        panel.set_xticks(list(means), [f"{rate:g}" for rate in means])
        panel.minorticks_off()
    panels[0].legend()
    return figure


if __name__ == "__main__":
    main()
