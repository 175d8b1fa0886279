"""Learning rates to begin with: each architecture at three rates, as the quick starts train it. See docs/recipes.md.

Reads the data that the quick starts make (data/cldr.en-de.bin, data/python.bin, data/python.shards).

    python -m scripts.experiments.learning_rates --gpus 1 --processes 12 --output docs/claims
"""

import argparse
import json
import math
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from scripts.experiments.common import ROOT, Result, versions
from scripts.experiments.fairseq_jobs import Job, Jobs, parser_of, training_result
from torchscale_fairseq.core.files import write_atomically

NAME = "learning_rates"


@dataclass(frozen=True)
class Kind:
    """Models that are trained alike."""

    data: str
    """Folder below --data."""
    options: str
    """Of fairseq-train."""
    updates: int
    warmup: int


TRANSLATION = "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 --max-tokens 700"
LANGUAGE = "--task language_modeling --criterion cross_entropy --tokens-per-sample 256 --max-tokens 512"
MASKED = (
    "--task pretraining --criterion masked_lm --sample-break-mode none --tokens-per-sample 64 --max-tokens 1024 "
    "--mask-prob 0.3 --xpos-rel-pos --dropout 0 --attention-dropout 0"
)
KINDS = {
    "translation": Kind("cldr.en-de.bin", TRANSLATION, updates=800, warmup=200),
    "language": Kind("python.bin", LANGUAGE, updates=1200, warmup=100),
    "masked": Kind("python.shards", MASKED, updates=1200, warmup=100),
}
SMALL, BASE = (1e-3, 2e-3, 4e-3), (2.5e-4, 5e-4, 1e-3)
"""Rates of models of width 256, and of 512 or 768."""


@dataclass(frozen=True)
class Run:
    architecture: str
    kind: str
    learning_rate: float

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.learning_rate:g}"


def runs() -> list[Run]:
    """Those that take longest last."""
    table = [
        ("language", "gpt_deepnorm gpt_magneto gpt_xpos retnet longnet bitnet", "small", SMALL),
        ("masked", "bert_deepnorm bert_magneto", "small", SMALL),
        ("translation", "mt_magneto mt_retnet mt_swiglu", "small", (5e-4, 1e-3, 2e-3)),
        ("translation", "mt_magneto mt_retnet mt_swiglu", "base", BASE),
        ("language", "gpt_deepnorm gpt_magneto gpt_xpos retnet bitnet", "base", BASE),
        ("masked", "bert_deepnorm bert_magneto", "base", BASE),
    ]
    return [
        Run(f"{family}_{size}", kind, rate)
        for kind, families, size, rates in table
        for family in families.split()
        for rate in rates
    ]


def command(run: Run, options: argparse.Namespace) -> tuple[str, ...]:
    kind = KINDS[run.kind]
    words = ["fairseq-train", options.data / kind.data, "--user-dir", ROOT / "torchscale_fairseq"]
    words += ["--arch", run.architecture, *shlex.split(kind.options), "--lr", f"{run.learning_rate:g}"]
    words += ["--optimizer", "fused_adam_torch", "--adam-betas", "(0.9, 0.98)", "--clip-norm", 1.0]
    words += ["--lr-scheduler", "polynomial_decay", "--warmup-updates", kind.warmup, "--seed", 1]
    words += ["--total-num-update", kind.updates, "--max-update", options.updates or kind.updates]
    words += [
        "--validate-interval",
        10**6,
        "--no-save",
        "--save-dir",
        options.work_dir / run.name,
        "--batch-size-valid",
        8,
    ]
    words += ["--log-format", "json", "--log-interval", 50, "--num-workers", 0, *([] if options.gpus else ["--cpu"])]
    return tuple(map(str, words))


def main() -> int:
    options = parse_options()
    options.output.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    results: list[Result] = []

    def done(run: Run, job: Job, status: int) -> tuple[Job, ...]:
        results.append({**asdict(run), **training_result(job.log.read_text()), "status": status})
        print(results[-1], flush=True)
        write(results, options, start)
        return ()

    Jobs(options.processes, options.gpus, start + 60 * options.minutes).run(
        Job(run.name, command(run, options), options.work_dir / run.name / "train.log", 1, partial(done, run))
        for run in runs()
    )
    return 0


def write(results: list[Result], options: argparse.Namespace, start: float) -> None:
    """The report, after each training, since a run may be cut off."""
    report = {
        "experiment": NAME,
        "command": shlex.join(["python", "-m", "scripts.experiments.learning_rates", *sys.argv[1:]]),
        "versions": versions(),
        "seconds": round(time.monotonic() - start, 1),
        "runs": sorted(results, key=lambda run: (run["kind"], run["architecture"], run["learning_rate"])),
    }
    with write_atomically(options.output / f"{NAME}.json") as path:
        path.write_text(json.dumps(report, indent=1) + "\n")


def parse_options() -> argparse.Namespace:
    parser = parser_of(NAME, __doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="where the report goes")
    add("--data", type=Path, default=ROOT / "data", metavar="DIR", help="where the quick starts' data are")
    add("--updates", type=int, metavar="N", help="end each training early")
    add("--minutes", type=float, default=math.inf, metavar="N", help="after which the rest is left out")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
