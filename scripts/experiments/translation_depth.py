"""Which architecture when: translation of real text by models of 3 + 3, 12 + 12 and 24 + 24 layers of width 256.

Stock fairseq's transformer, post-norm and pre-norm, next to this package's translation models. fairseq-train trains
each with the same batches at four learning rates, then the best rate with a second seed, then the better of its
neighbours. fairseq-generate translates the test set at the best rate. A second call resumes where the first stopped.

    torchscale-fairseq data catalog-corpus data/catalog.en-de
    torchscale-fairseq data prepare-translation --source-lang en --target-lang de --train data/catalog.en-de/train \\
      --valid data/catalog.en-de/valid --test data/catalog.en-de/test --output data/catalog.en-de.bin --vocab-size 4000
    python -m scripts.experiments.translation_depth --gpus 4 --processes 36 --output docs/claims
"""

import argparse
import json
import math
import re
import shlex
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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "translation_depth"
SIDES = ("encoder", "decoder")
STOCK = ["--arch", "transformer"] + [
    word
    for side in SIDES
    for option, value in (("embed-dim", 256), ("ffn-embed-dim", 1024), ("attention-heads", 4))
    for word in (f"--{side}-{option}", str(value))
]
PRE_NORM = [f"--{side}-normalize-before" for side in SIDES]
BALANCED = ["moe_label_smoothed_cross_entropy", "--moe-gate-loss-combine-method", "sum", "--moe-gate-loss-wt", "0.05"]


@dataclass(frozen=True)
class Architecture:
    options: list[str]
    """Those of fairseq-train, without the number of layers."""
    colour: str
    dashed: bool = False
    criterion: tuple[str, ...] = ("label_smoothed_cross_entropy",)
    cost: float = 1.0
    """Time of an update, relative to the others."""


ARCHITECTURES = {
    "transformer, post-norm": Architecture(STOCK, "black"),
    "transformer, pre-norm": Architecture([*STOCK, *PRE_NORM], "black", dashed=True),
    "mt_deepnorm": Architecture(["--arch", "mt_deepnorm_small"], "blue"),
    "mt_magneto": Architecture(["--arch", "mt_magneto_small"], "green"),
    "mt_xmoe": Architecture(["--arch", "mt_xmoe_small"], "red", criterion=tuple(BALANCED), cost=2.0),
    "mt_retnet": Architecture(["--arch", "mt_retnet_small", "--retention-backend", "torch"], "purple", cost=1.2),
    "mt_swiglu": Architecture(["--arch", "mt_swiglu_small"], "orange"),
}
RATES = {3: (5e-4, 1e-3, 2e-3, 4e-3), 12: (2.5e-4, 5e-4, 1e-3, 2e-3), 24: (2.5e-4, 5e-4, 1e-3, 2e-3)}
"""Learning rates by the layers of a side."""
SEEDS = (1, 2)
RESULTS = ("nll", "training_nll", "bleu", "parameters", "status")
LONG = 40
"""Cost from which all rates are trained with both seeds at once: a second seed that waited would end too late."""


@dataclass(frozen=True)
class Run:
    """One training."""

    architecture: str
    layers: int
    """Of each side."""
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        words = (*re.findall(r"\w+", self.architecture), self.layers, f"{self.learning_rate:g}", self.seed)
        return "-".join(map(str, words))


class Study:
    """All trainings and translations: those that can start, and the results so far.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._file = options.work_dir / "results.json"
        earlier = json.loads(self._file.read_text()) if self._file.exists() else {}
        self.results: dict[str, Result] = {name: result for name, result in earlier.items() if result["status"] == 0}
        """By a run's name: its settings, and what was measured."""
        self._given: set[str] = set()

    def jobs(self) -> Iterator[Job]:
        """What can start now, given what is finished."""
        for architecture in ARCHITECTURES:
            for layers in self._options.layers:
                yield from self._next(architecture, layers)

    def _next(self, architecture: str, layers: int) -> Iterator[Job]:
        """Jobs of one architecture at one depth that are neither finished nor given out."""
        first = [Run(architecture, layers, rate, SEEDS[0]) for rate in self._options.rates[layers]]
        yield from self._train(first)
        if all(run.name in self.results for run in first):
            chosen = best_two(first, self.results)
            again = [Run(architecture, layers, run.learning_rate, SEEDS[1]) for run in chosen]
            yield from self._train(again[:1])
            yield from self._train(again[1:], patience=1000)
            yield from self._translate([chosen[0], again[0]])
        elif layers * ARCHITECTURES[architecture].cost >= LONG:
            yield from self._train([Run(architecture, layers, run.learning_rate, SEEDS[1]) for run in first])

    def _train(self, runs: list[Run], *, patience: float = 1.0) -> Iterator[Job]:
        for run in runs:
            if run.name not in self.results and run.name not in self._given:
                self._given.add(run.name)
                yield Job(
                    run.name,
                    train_command(run, self._options),
                    self._options.work_dir / run.name / "train.log",
                    run.layers * ARCHITECTURES[run.architecture].cost / patience,
                    partial(self._trained, run),
                )

    def _translate(self, runs: list[Run]) -> Iterator[Job]:
        for run in runs:
            name = f"{run.name}-generate"
            result = self.results.get(run.name, {})
            if result.get("nll") is not None and "bleu" not in result and name not in self._given:
                self._given.add(name)
                log = self._options.work_dir / run.name / "generate.log"
                command = generate_command(run, self._options)
                yield Job(name, command, log, math.inf, partial(self._translated, run))

    def _trained(self, run: Run, job: Job, status: int) -> Iterator[Job]:
        log = job.log.read_text()
        self._keep(run, {**asdict(run), **training_result(log), "status": status})
        if status:
            print(f"{run.name} failed: {log.strip().splitlines()[-1:]}", flush=True)
        yield from self._next(run.architecture, run.layers)

    def _translated(self, run: Run, job: Job, status: int) -> Iterator[Job]:
        found = re.findall(r"BLEU\S* = ([\d.]+)", job.log.read_text())
        self._keep(run, {**self.results[run.name], "bleu": float(found[-1]) if found and not status else None})
        for checkpoint in job.log.parent.glob("*.pt"):
            checkpoint.unlink()
        yield from ()

    def _keep(self, run: Run, result: Result) -> None:
        """Note what came out of a run, on disk too."""
        self.results[run.name] = result
        print(run.name, {key: value for key, value in result.items() if key in RESULTS}, flush=True)
        with write_atomically(self._file) as path:
            path.write_text(json.dumps(self.results, indent=1))


def best_two(runs: list[Run], results: dict[str, Result]) -> list[Run]:
    """The best of runs at rising rates, and the better of its neighbours."""
    nll = [results[run.name]["nll"] for run in runs]
    loss = [math.inf if value is None else value for value in nll]
    best = loss.index(min(loss))
    neighbours = [place for place in (best - 1, best + 1) if 0 <= place < len(runs)]
    return [runs[best], *(runs[place] for place in sorted(neighbours, key=loss.__getitem__)[:1])]


# Commands


def train_command(run: Run, options: argparse.Namespace) -> tuple[str, ...]:
    architecture = ARCHITECTURES[run.architecture]
    words: list[Any] = ["fairseq-train", options.data, "--user-dir", ROOT / "torchscale_fairseq", *architecture.options]
    words += [word for side in SIDES for word in (f"--{side}-layers", run.layers)]
    words += ["--share-all-embeddings", "--dropout", 0.1, "--criterion", *architecture.criterion]
    words += ["--label-smoothing", 0.1, "--optimizer", "fused_adam_torch", "--adam-betas", "(0.9, 0.98)"]
    words += ["--clip-norm", 1.0, "--lr-scheduler", "polynomial_decay", "--lr", f"{run.learning_rate:g}"]
    words += ["--warmup-updates", options.updates // 4, "--total-num-update", options.updates]
    words += ["--max-update", options.updates, "--max-tokens", options.max_tokens, "--seed", run.seed]
    # Measured once, at the end; the checkpoint serves fairseq-generate alone.
    words += ["--validate-interval", 10**6, "--save-interval", 10**6, "--no-epoch-checkpoints"]
    words += ["--no-save-optimizer-state", "--save-dir", options.work_dir / run.name]
    words += ["--log-format", "json", "--log-interval", 50, "--num-workers", 0, *device(options)]
    return tuple(map(str, words))


def generate_command(run: Run, options: argparse.Namespace) -> tuple[str, ...]:
    words: list[Any] = ["fairseq-generate", options.data, "--user-dir", ROOT / "torchscale_fairseq"]
    words += ["--path", options.work_dir / run.name / "checkpoint_last.pt", "--beam", 5, "--max-len-a", 1.5]
    words += ["--max-len-b", 10, "--max-tokens", 8000, "--bpe", "sentencepiece", "--sentencepiece-model"]
    words += [options.data / "sentencepiece.bpe.model", "--scoring", "sacrebleu", "--num-workers", 0, *device(options)]
    return tuple(map(str, words))


def device(options: argparse.Namespace) -> list[str]:
    return [] if options.gpus else ["--cpu"]


# The command line


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
    add("--data", type=Path, default=ROOT / "data/catalog.en-de.bin", metavar="DIR", help="the prepared text")
    add("--updates", type=int, default=700, metavar="N", help="of each training; default: 700")
    add("--max-tokens", type=int, default=4096, metavar="N", help="of a batch; default: 4096")
    add("--layers", type=int, nargs="+", default=list(RATES), metavar="N", help="of each side; default: 3 12 24")
    add("--minutes", type=float, default=math.inf, metavar="N", help="after which the rest is left out")
    add("--small", action="store_true", help="2 + 2 layers, one rate and 4 updates")
    options = parser.parse_args()
    options.rates = RATES
    if options.small:
        options.layers, options.updates, options.max_tokens, options.rates = [2], 4, 512, {2: (1e-3,)}
    unknown = set(options.layers) - set(options.rates)
    if unknown:
        parser.error(f"--layers takes {', '.join(map(str, options.rates))}, for which there are learning rates")
    return options


def conduct(options: argparse.Namespace) -> None:
    """Train, translate, write the report and draw its figure."""
    if not (options.data / "sentencepiece.bpe.model").exists():
        raise InputError(f"--data {options.data} has no prepared text; --help shows the commands that make it")
    start = time.monotonic()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    study = Study(options)
    jobs = Jobs(options.processes, options.gpus, start + 60 * options.minutes)
    jobs.run(study.jobs())
    report = {
        "experiment": NAME,
        "command": shlex.join(["python", "-m", f"scripts.experiments.{NAME}", *sys.argv[1:]]),
        "machine": machine("cuda" if options.gpus else "cpu"),
        "versions": versions(),
        "seconds": round(time.monotonic() - start, 1),
        "updates": options.updates,
        "max_tokens": options.max_tokens,
        "left_out": sorted(jobs.left),
        "runs": sorted(study.results.values(), key=lambda run: (run["layers"], run["architecture"])),
    }
    path = options.output / f"{NAME}.json"
    options.output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, allow_nan=False, indent=1) + "\n")
    print(f"wrote {path} after {report['seconds']} s; left out: {len(jobs.left)}")
    if has_matplotlib():
        plot(NAME, draw, path)
    else:
        print(f"no figure: {NO_MATPLOTLIB}, then --plot-only {path}")


# The figure


def draw(report: Result) -> "Figure":
    from matplotlib import pyplot

    depths = sorted({run["layers"] for run in report["runs"]})
    figure, panels = pyplot.subplots(
        1, len(depths) + 1, sharey=True, squeeze=False, figsize=(3.4 * len(depths) + 3.4, 4.4)
    )
    *by_rate, by_depth = panels[0]
    for name, look in ARCHITECTURES.items():
        style = {"color": COLOURS[look.colour], "linestyle": "--" if look.dashed else "-", "label": name}
        best = {}
        for layers, panel in zip(depths, by_rate, strict=True):
            runs = [run for run in report["runs"] if (run["architecture"], run["layers"]) == (name, layers)]
            draw_rates([run for run in runs if run["nll"] is not None], panel, style)
            losses = [run["nll"] for run in runs if run["nll"] is not None and run["seed"] == SEEDS[0]]
            best[layers] = min(losses, default=math.nan)
        by_depth.plot([str(layers) for layers in best], list(best.values()), marker="o", markersize=4, **style)
    for layers, panel in zip(depths, by_rate, strict=True):
        panel.set_title(f"{layers} + {layers} layers")
        panel.set_xlabel("learning rate")
        panel.set_xscale("log", base=2)
        rates = sorted({run["learning_rate"] for run in report["runs"] if run["layers"] == layers})
        panel.set_xticks(rates, [f"{rate * 1000:g}e-3" for rate in rates], fontsize=8)
    by_depth.set_title("at the best rate")
    by_depth.set_xlabel("layers of each side")
    by_rate[0].set_ylabel("validation nll (bits per piece)\n(lines: seed 1, dots: seed 2)")
    figure.legend(*by_depth.get_legend_handles_labels(), loc="outside upper center", ncols=len(ARCHITECTURES))
    return figure


def draw_rates(runs: list[Result], panel: "Axes", style: dict[str, Any]) -> None:
    """A line through the runs of the first seed, dots for those of the second."""
    points = [(run["learning_rate"], run["nll"], run["seed"]) for run in runs]
    first = sorted((rate, nll) for rate, nll, seed in points if seed == SEEDS[0])
    second = [(rate, nll) for rate, nll, seed in points if seed != SEEDS[0]]
    panel.plot(*zip(*first, strict=True), **style)
    if second:
        panel.plot(*zip(*second, strict=True), marker="o", markersize=4, linestyle="", color=style["color"])


if __name__ == "__main__":
    main()
