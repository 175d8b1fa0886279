"""Tokens per second of fairseq-train on 1, 2, 4 and 8 GPUs of one host, with equal tokens per GPU.

    python -m benchmarks.scaling                                   # everything, on as many GPUs as there are
    python -m benchmarks.scaling --only ddp-1.3b experts-8 experts-64 --processes 1 8
    python -m benchmarks.scaling --only equal-sharded resume-sharded killed
    python -m benchmarks.scaling --device cpu --toy                # 1, 2 and 4 processes, at a small size
    python -m benchmarks.scaling --figure docs/figures/scaling.png # measured points and the model's lines

--results keeps every measurement, and what is there is not measured again: a call that is interrupted continues, and a
call on a machine without GPUs prints the tables. Each measurement has a time limit. --figure needs matplotlib
(requirements/experiments.txt).
"""

import argparse
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.compare import positive
from benchmarks.limited import RunError, output_of
from benchmarks.report import DisagreementError, machine, versions
from benchmarks.scaling.checks import CHECKS
from benchmarks.scaling.launch import ADAM, TRAINER, Place
from benchmarks.scaling.log import Logged, read_log
from benchmarks.scaling.results import CHECKED, SPEED, Problems, Results, check_line, key, speed_line, table
from benchmarks.scaling.rows import ROWS, Row
from benchmarks.throughput import write_data

VOCABULARY, SMALL_VOCABULARY = 50_000, 1000
TOY_UPDATES = 8
CHECK_TOKENS = 100_000
NUMBERS = (1, 2, 4, 8)


class Work(NamedTuple):
    """A measurement that is missing.

    Args:
        name: its key in the results.
        tokens: of the data that it reads.
        run: measures it.
    """

    name: str
    tokens: int
    run: Callable[[Place], Logged | str]


def speed(row: Row, processes: int, updates: int, place: Place) -> Logged:
    """Figures of a row from fairseq-train's log.

    Raises:
        RunError: the run failed, or took too long.
    """
    words = [*row.words(processes, toy=place.toy), *ADAM, "1e-4", "--no-save", "--max-update", str(updates)]
    words += ["--log-format", "json", "--log-interval", str(updates // 4)]
    log = place.logs / f"{row.name}-{processes}.log"
    command = place.command(processes, TRAINER, words)
    logged = read_log(output_of(row.seconds, command, log, environment=place.environment))
    if logged is None:
        raise RunError(f"logged too few updates, see {log}")
    return logged


def pending(options: argparse.Namespace, results: Results) -> Iterator[Work]:
    """The measurements that are selected, possible here and not in the results."""
    for row in options.rows:
        for processes in options.processes:
            if row.fewest <= processes <= row.most and key(row, processes) not in results.found:
                updates = TOY_UPDATES if options.toy else row.updates
                tokens = row.tokens(toy=options.toy) * processes * (updates + 1)
                yield Work(key(row, processes), tokens, partial(speed, row, processes, updates))
    for check in options.checks:
        if len(options.processes) > 1 and check.name not in results.found:
            yield Work(check.name, CHECK_TOKENS, partial(check.run, options.processes))


def measure(options: argparse.Namespace, results: Results) -> Problems:
    """Make the pending measurements; returns why some are missing."""
    problems: Problems = {}
    works = list(pending(options, results))
    if not works:
        return problems
    described = f"{machine(options.device)}; {versions()}"
    with tempfile.TemporaryDirectory() as folder:
        place = prepare(Path(folder), works, options)
        for work in works:
            print(f"scaling: {work.name}", file=sys.stderr, flush=True)
            start = time.monotonic()
            try:
                found = work.run(place)
            except (RunError, DisagreementError) as error:
                problems[work.name] = str(error)
                print(f"scaling: {work.name}: {error}", file=sys.stderr, flush=True)
            else:
                results.add(work.name, found, time.monotonic() - start, described)
    return problems


def prepare(folder: Path, works: list[Work], options: argparse.Namespace) -> Place:
    """Write the data that all measurements read."""
    place = Place(folder / "data", options.results.parent / "logs", folder, options.toy)
    place.data.mkdir()
    place.logs.mkdir(parents=True, exist_ok=True)
    write_data(place.data, max(work.tokens for work in works), SMALL_VOCABULARY if options.toy else VOCABULARY)
    return place


def report(options: argparse.Namespace, words: list[str], results: Results, problems: Problems) -> str:
    """The command, the machines and the tables, as Markdown."""
    measured = {row.name: results.measured(row) for row in options.rows}
    numbers = {row.name: sorted({*options.processes, *measured[row.name]}) for row in options.rows}
    speeds = [
        speed_line(results, row, n, ROWS, problems)
        for row in options.rows
        for n in numbers[row.name]
        if row.fewest <= n <= row.most
    ]
    checks = [check_line(results, check, problems) for check in options.checks]
    command = f"`{shlex.join(['python', '-m', 'benchmarks.scaling', *words])}`"
    parts = [command, *results.machines, table(SPEED, speeds), table(CHECKED, checks)]
    return "\n\n".join(filter(None, parts))


def main(words: list[str]) -> int:
    """Measure what is missing, and print the tables; returns 1 if a measurement failed."""
    options = parse_options(words)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    results = Results.read(options.results)
    problems: Problems = {}
    try:
        problems = measure(options, results)
    finally:
        print(report(options, words, results, problems))
    if options.figure:
        from benchmarks.scaling.figure import save

        save(results, options.figure)
    return int(bool(problems))


def parse_options(words: list[str]) -> argparse.Namespace:
    """Options, with the selected rows and checks."""
    parser = argparse.ArgumentParser(
        prog="scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*(row.name for row in ROWS), *(check.name for check in CHECKS)]
    add = parser.add_argument
    add("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)} (all)")
    add("--processes", type=positive, nargs="+", metavar="N", help="numbers of GPUs (1, 2, 4, 8, up to those here)")
    add("--device", choices=("cpu", "cuda"), default="cuda", help="(cuda)")
    add("--toy", action="store_true", help="small models, float32; the only size for --device cpu")
    add("--results", type=Path, metavar="FILE.json", help="of all measurements (runs/scaling/results.json)")
    add("--figure", type=Path, metavar="FILE.png", help="also draw the measured points and the model's lines")
    options = parser.parse_args(words)
    if options.toy != (options.device == "cpu"):
        parser.error("--toy and --device cpu go together: give both or neither")
    here = 4 if options.toy else torch.cuda.device_count()
    options.processes = sorted(options.processes or [n for n in NUMBERS if n <= here])
    if max(options.processes, default=0) > here:
        parser.error(f"--processes {max(options.processes)}: at most {here} here")
    options.results = options.results or Path(f"runs/scaling{'-toy' * options.toy}/results.json")
    options.rows = [row for row in ROWS if options.only is None or row.name in options.only]
    options.checks = [check for check in CHECKS if options.only is None or check.name in options.only]
    return options


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main(sys.argv[1:]))
