"""Tables of docs/performance.md, row by row: each is a call of another benchmark, with a time limit of its own.

    python -m benchmarks.table training                    # what fairseq-train and fairseq-generate must reach
    python -m benchmarks.table architectures               # retention, dilated attention, experts, BitNet
    python -m benchmarks.table training --rows fp16 base --folder "$OUT"
    python -m benchmarks.table sharding                    # what several GPUs must reach
    python -m benchmarks.table training --fill 4           # after a run of all rows for torch's and Triton's caches
    python -m benchmarks.table training --toy              # each command at a small size on a CPU, to try it

--folder keeps what each row printed, and rows that are there are not measured again. A row that fails or takes too long
leaves its output and its logs of fairseq-train as NAME.failed, and is measured again by the next call. The GPUs of a
machine measure different rows at a time. The table is printed at the end, which comes in time with --within.
"""

import argparse
import math
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.compare import positive
from benchmarks.filling import fill, use_own_cache
from benchmarks.limited import RunError, output_of
from benchmarks.report import machine, versions
from benchmarks.several_gpus import Gpus, visible
from benchmarks.table_rows import TABLES, Row

WITH_LOGS = {"throughput"}
"""Benchmarks with the option --logs."""
HEADER = "| work | at least | found | seconds |\n|---|---|---|---|"


def cells_of(text: str) -> list[list[str]]:
    """The cells of each line of the Markdown tables of a text, the rules below headers left out."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if not set("".join(row)) <= set("-: ")]


def found(row: Row, text: str) -> str:
    """The cells of a row's columns, after the first cells of their line; without columns, the lines with its title."""
    if not row.columns:
        return "; ".join(line for line in text.splitlines() if line.startswith(row.title))
    header: list[str] = []
    lines = []
    for cells in cells_of(text):
        if set(row.columns) <= set(cells):
            header = cells
        elif header and len(cells) == len(header):
            values = [cells[header.index(column)] for column in row.columns]
            lines.append(f"{' '.join(cells[: row.titles])}: {' '.join(filter(None, values))}")
    return "; ".join(lines) or "no table was printed"


def refusal(row: Row, options: argparse.Namespace) -> str | None:
    """Why a row cannot be measured here; None if it can."""
    if row.needs_data and options.data is None:
        return "needs --data DIR (see benchmarks/translation.py)"
    if not options.toy and row.gpus > torch.cuda.device_count():
        return f"needs {row.gpus} GPU{'s' * (row.gpus > 1)}"
    return None


def command(row: Row, options: argparse.Namespace, logs: Path) -> list[str]:
    """The program and its arguments; logs of fairseq-train go to the folder ``logs`` as they are written."""
    benchmark, *words = [
        str(options.data) if word == "DATA" else word for word in (row.toy if options.toy else row.words)
    ]
    kept = ["--logs", str(logs)] if benchmark in WITH_LOGS else []
    return [sys.executable, "-m", f"benchmarks.{benchmark}", *kept, *words]


def fill_caches(rows: list[Row], options: argparse.Namespace) -> None:
    """Run rows side by side for the caches alone, but for those that have caches of their own."""
    shared = [row for row in rows if not row.has_own_caches]
    print(f"table.py: filling caches, {len(shared)} rows, {options.fill_seconds} s", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as logs:
        folders = {row.name: Path(logs, row.name) for row in shared}
        for folder in folders.values():
            folder.mkdir()
        commands = [(row.gpus, command(row, options, folders[row.name])) for row in shared]
        seconds = min(options.fill_seconds, options.end - time.monotonic())
        fill(commands, options.fill, seconds, max(1, torch.cuda.device_count()))


def measure(row: Row, options: argparse.Namespace, devices: Sequence[int]) -> str | None:
    """Run a row on these GPUs and keep what it printed; returns why it failed, or None."""
    logs, limit = options.folder / row.name, options.seconds or row.seconds
    limit = min(limit, options.end - time.monotonic())
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    words = command(row, options, logs)
    print(f"table.py: {row.name}, at most {limit:.0f} s: {shlex.join(words[1:])}", file=sys.stderr, flush=True)
    output, start = options.folder / f"{row.name}.failed", time.monotonic()
    try:
        output_of(limit, words, output, environment={"PYTHONUNBUFFERED": "1", **visible(devices)})
    except RunError as error:
        with output.open("a") as file:
            file.writelines(f"\n{log}:\n{log.read_text()}" for log in sorted(logs.iterdir()))
        return str(error)
    with output.open("a") as file:
        file.write(f"\ntable.py: {time.monotonic() - start:.0f} seconds\n")
    output.rename(options.folder / f"{row.name}.txt")
    return None


def measure_all(rows: Sequence[Row], options: argparse.Namespace) -> dict[str, str]:
    """Run rows as GPUs become free, and print each line when it is there; returns why rows failed."""
    problems: dict[str, str] = {}

    def job(row: Row, devices: Sequence[int]) -> None:
        problem = measure(row, options, devices)
        if problem:
            problems[row.name] = problem
        print(line(row, options, problem), file=sys.stderr, flush=True)

    gpus = Gpus(0 if options.toy else torch.cuda.device_count())
    gpus.run_each([(row.gpus, partial(job, row)) for row in rows], options.end)
    return problems


def line(row: Row, options: argparse.Namespace, problem: str | None) -> str:
    """A line of the table."""
    path = options.folder / f"{row.name}.txt"
    text, seconds = (path.read_text() if path.exists() else ""), ""
    if text:
        seconds = text.rsplit("table.py: ", 1)[-1].removesuffix(" seconds\n")
    result = found(row, text) if text else problem or "not measured"
    return f"| {row.work} | {row.least} | {result} | {seconds} |"


def main(words: list[str]) -> int:
    """Measure what is missing, and print the table; returns 1 if a row failed."""
    options = parse_options(words)
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in TABLES[options.table] if not options.rows or row.name in options.rows]
    missing = [row for row in rows if not (options.folder / f"{row.name}.txt").exists()]
    use_own_cache()
    refused = {row.name: problem for row in missing if (problem := refusal(row, options))}
    missing = [row for row in missing if row.name not in refused]
    if options.fill:
        fill_caches(missing, options)
    failed = measure_all(missing, options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(
        f"`{shlex.join(['python', '-m', 'benchmarks.table', *words])}`\n\n{machine(device)}; {versions()}\n\n{HEADER}"
    )
    print("\n".join(line(row, options, {**refused, **failed}.get(row.name)) for row in rows))
    return int(bool(failed))


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="table.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="(all)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="of the rows' output (runs/table-TABLE)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="binarised sentences for rows of translation")
    parser.add_argument("--seconds", type=positive, metavar="N", help="time limit of each row (its own)")
    parser.add_argument(
        "--fill",
        type=positive,
        metavar="N",
        help="first run the missing rows, N at a time, to fill the compile caches of torch and Triton, without keeping "
        "their output; then measure each alone, as rows that share a machine slow each other",
    )
    parser.add_argument("--fill-seconds", type=positive, default=240, metavar="N", help="time limit of --fill (240)")
    parser.add_argument("--within", type=positive, metavar="N", help="seconds for the whole call (no limit)")
    parser.add_argument("--toy", action="store_true", help="small sizes on a CPU")
    options = parser.parse_args(words)
    options.end = time.monotonic() + (options.within or math.inf)
    options.folder = options.folder or Path(f"runs/table-{options.table}{'-toy' * options.toy}")
    unknown = set(options.rows or []) - {row.name for row in TABLES[options.table]}
    if unknown:
        names = ", ".join(row.name for row in TABLES[options.table])
        parser.error(f"--rows {' '.join(sorted(unknown))}: the table has {names}")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
