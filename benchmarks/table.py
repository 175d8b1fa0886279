"""Tables of docs/performance.md, row by row: each is a call of another benchmark, with a time limit of its own.

    python -m benchmarks.table training                    # what fairseq-train and fairseq-generate must reach
    python -m benchmarks.table architectures               # retention, dilated attention, experts, BitNet
    python -m benchmarks.table training --rows fp16 plain-base --folder "$OUT"
    python -m benchmarks.table training --fill 4           # after a run of all rows for torch's and Triton's caches
    python -m benchmarks.table training --toy              # each command at a small size on a CPU, to try it

--folder keeps what each row printed, and rows that are there are not measured again. A row that fails or takes too long
leaves its output and its logs of fairseq-train as NAME.failed, and is measured again by the next call. The table is
printed at the end.
"""

import argparse
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.compare import positive
from benchmarks.filling import fill, use_own_cache
from benchmarks.limited import RunError, output_of
from benchmarks.report import machine, versions
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
    """The cells of a row's columns, after the first cells of their line."""
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
        fill([command(row, options, folders[row.name]) for row in shared], options.fill, options.fill_seconds)


def measure(row: Row, options: argparse.Namespace) -> str | None:
    """Run a row and keep what it printed; returns why it failed, or None."""
    logs, limit = options.folder / row.name, options.seconds or row.seconds
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    words = command(row, options, logs)
    print(f"table.py: {row.name}, at most {limit} s: {shlex.join(words[1:])}", file=sys.stderr, flush=True)
    partial, start = options.folder / f"{row.name}.failed", time.monotonic()
    try:
        output_of(limit, words, partial, environment={"PYTHONUNBUFFERED": "1"})
    except RunError as error:
        with partial.open("a") as output:
            output.writelines(f"\n{log}:\n{log.read_text()}" for log in sorted(logs.iterdir()))
        return str(error)
    with partial.open("a") as output:
        output.write(f"\ntable.py: {time.monotonic() - start:.0f} seconds\n")
    partial.rename(options.folder / f"{row.name}.txt")
    return None


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
    if options.fill:
        fill_caches([row for row in missing if refusal(row, options) is None], options)
    found = {row.name: refusal(row, options) or measure(row, options) for row in missing}
    problems = {name: problem for name, problem in found.items() if problem}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(
        f"`{shlex.join(['python', '-m', 'benchmarks.table', *words])}`\n\n{machine(device)}; {versions()}\n\n{HEADER}"
    )
    print("\n".join(line(row, options, problems.get(row.name)) for row in rows))
    return int(any(not problem.startswith("needs") for problem in problems.values()))


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
    parser.add_argument("--toy", action="store_true", help="small sizes on a CPU")
    options = parser.parse_args(words)
    options.folder = options.folder or Path(f"runs/table-{options.table}{'-toy' * options.toy}")
    unknown = set(options.rows or []) - {row.name for row in TABLES[options.table]}
    if unknown:
        names = ", ".join(row.name for row in TABLES[options.table])
        parser.error(f"--rows {' '.join(sorted(unknown))}: the table has {names}")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
