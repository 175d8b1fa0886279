"""Measurements that are kept in a JSON file, and the tables made of them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.scaling.checks import Check
from benchmarks.scaling.log import Logged
from benchmarks.scaling.rows import Row
from benchmarks.sharding import PEAK

SPEED = "| work | GPUs | tokens/s and GPU | tokens/s | of 989 TFLOP/s | GiB per GPU | ratio | goal | seconds |"
CHECKED = "| check | found | seconds |"
Problems = dict[str, str]
"""Why a measurement is missing, by its key."""


def key(row: Row, processes: int) -> str:
    """The name of a measurement."""
    return f"{row.name}/{processes}"


@dataclass
class Results:
    """Measurements by key; each has its seconds and its machine.

    Args:
        path: the JSON file.
        found: its content.
    """

    path: Path
    found: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> "Results":
        """The measurements of a file, or none if it does not exist yet."""
        return cls(path, json.loads(path.read_text()) if path.exists() else {})

    def add(self, name: str, value: Logged | str, seconds: float, machine: str) -> None:
        """Keep a measurement, in the file too."""
        entry = {"found": value} if isinstance(value, str) else asdict(value)
        self.found[name] = {**entry, "seconds": round(seconds), "machine": machine}
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(self.found, indent=1) + "\n")
        partial.replace(self.path)

    def logged(self, row: Row, processes: int) -> Logged | None:
        """The figures of a row; None if it has not been measured."""
        entry = self.found.get(key(row, processes))
        return None if entry is None else Logged(**{name: entry[name] for name in Logged.__dataclass_fields__})

    def measured(self, row: Row) -> dict[int, Logged]:
        """The figures of a row by number of processes."""
        numbers = sorted(int(name.split("/")[1]) for name in self.found if name.startswith(f"{row.name}/"))
        return {n: logged for n in numbers if (logged := self.logged(row, n)) is not None}

    @property
    def machines(self) -> list[str]:
        """The machines and versions of all measurements."""
        return sorted({entry["machine"] for entry in self.found.values()})


def ratio(results: Results, row: Row, processes: int, rows: list[Row]) -> float | None:
    """Tokens per second and GPU, relative to the row's baseline: one process, or the fewest that hold the model."""
    baseline = next((other for other in rows if other.name == row.baseline), row)
    first, logged = results.logged(baseline, baseline.fewest), results.logged(row, processes)
    return None if first is None or logged is None else logged.tokens_per_second / first.tokens_per_second


def speed_line(results: Results, row: Row, processes: int, rows: list[Row], problems: Problems) -> str:
    """A line of the table of speeds."""
    logged = results.logged(row, processes)
    if logged is None:
        found = [problems.get(key(row, processes), "not measured"), "", "", "", "", row.goal, ""]
        return _line([row.title, str(processes), *found])
    relative = ratio(results, row, processes, rows)
    rate = logged.tokens_per_second
    cells = [f"{rate:,.0f}", f"{processes * rate:,.0f}", f"{logged.flops / PEAK:.1%}"]
    cells += [f"{logged.memory:.1f}" if logged.memory else "", "" if relative is None else f"{relative:.3f}", row.goal]
    return _line([row.title, str(processes), *cells, str(results.found[key(row, processes)]["seconds"])])


def check_line(results: Results, check: Check, problems: Problems) -> str:
    """A line of the table of checks."""
    entry = results.found.get(check.name)
    if entry is None:
        return _line([check.title, problems.get(check.name, "not measured"), ""])
    return _line([check.title, entry["found"], str(entry["seconds"])])


def table(header: str, lines: list[str]) -> str:
    """A Markdown table; empty without lines."""
    return "\n".join([header, "|---" * (header.count("|") - 1) + "|", *lines]) if lines else ""


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
