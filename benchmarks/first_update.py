"""Seconds from the start of fairseq-train to its first updates: with empty caches of kernels, then with filled ones.

    python -m benchmarks.first_update                                    # retnet_xl, 8,192 tokens, --bf16 --compile
    python -m benchmarks.first_update --case 7b:1x2048,retnet,eager --runs 1 -- --optimizer adam \\
        --ddp-backend fully_sharded --checkpoint-activations
    python -m benchmarks.first_update --case small:1x16,retnet --device cpu --vocab-size 100

Cases are those of throughput.py. Each run is a process of its own. All runs share one folder for the caches of torch
and Triton, which is empty before the first of them, so that the second run shows what later runs gain.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.compare import positive
from benchmarks.limited import shown_lines
from benchmarks.report import machine, versions
from benchmarks.throughput import HERE, finished, train_words, training_parser, write_data
from benchmarks.throughput_cases import Case

CASE = "xl:1x8192,retnet"
TRAIN = ["-m", "fairseq_cli.train"]
BEGINS, UPDATED = "Start iterating over samples", "| train_inner |"
"""Marks in the log of fairseq-train: the first update follows, and an update has ended (--log-interval 1)."""
HEADER = "| model, tokens per update | caches | first update begins | first update ends | later updates |"


def seconds_of_marks(words: list[str], caches: Path) -> list[float]:
    """Run fairseq-train; seconds from its start to the beginning of the first update and to the end of each.

    Raises:
        SystemExit: it failed.
    """
    environment = {**os.environ, **cache_folders(caches), "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *sys.path[1:]])
    command = [sys.executable, *TRAIN, *words]
    found: list[float] = []
    lines: list[str] = []
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as run:
        for line in shown_lines(run):
            lines.append(line)
            if UPDATED in line if found else BEGINS in line:
                found.append(time.monotonic() - start)
    if run.returncode or len(found) < 2:
        raise SystemExit(f"first_update.py: fairseq-train {shlex.join(words)} failed:\n{''.join(lines)[-3000:]}")
    return found


def cache_folders(caches: Path) -> Mapping[str, str]:
    """The variables that say where torch and Triton keep what they compile and tune."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(caches / "torch"), "TRITON_CACHE_DIR": str(caches / "triton")}


def row(case: Case, caches: str, marks: list[float]) -> str:
    """A line of the table."""
    begins, first, *later = marks
    steps = ", ".join(f"{b - a:.2f} s" for a, b in zip([first, *later], later, strict=False))
    return f"| {case.title} | {caches} | {begins:.1f} s | {first:.1f} s | {steps} |"


def main(words: list[str]) -> int:
    options = parse_options(words)
    case, rows = options.case, []
    with tempfile.TemporaryDirectory() as folder:
        data, caches = Path(folder, "data"), Path(folder, "caches")
        data.mkdir()
        write_data(data, case.text_of_update * (options.updates + 1), options.vocab_size)
        train = [*train_words(case, data, options), "--log-interval", "1"]
        print(f"first_update.py: fairseq-train {shlex.join(train)}", file=sys.stderr, flush=True)
        for run in range(options.runs):
            rows.append(row(case, "filled" if run else "empty", seconds_of_marks(train, caches)))
            print(rows[-1], file=sys.stderr, flush=True)
    print(f"`{shlex.join(['python', '-m', 'benchmarks.first_update', *words])}`\n")
    print(f"{machine(options.device)}; {versions()}\n")
    print("\n".join([HEADER, "|---" * (HEADER.count("|") - 1) + "|", *rows]))
    return 0


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = training_parser("first_update.py", __doc__, updates=3)
    parser.add_argument("--case", type=Case.of, default=Case.of(CASE), help=f"({CASE})")
    parser.add_argument("--runs", type=positive, default=2, help="one after the other (2)")
    return finished(parser, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
