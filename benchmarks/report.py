"""The table, and what it was measured on."""

import os
import platform
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import torchscale_fairseq
from benchmarks.official import official_version

OFFICIAL, OURS, COMPILED, STOCK, DENSE = "official", "ours", "ours, compiled", "stock", "dense"
"""The sides: TorchScale 0.3.0, this package, the same under torch.compile, fairseq's
``transformer``, and a feed-forward network in place of experts."""

COLUMNS = ("benchmark", "side", "time", "speed", "vs official", "peak memory", "utilisation")


class DisagreementError(Exception):
    """Two sides that must not be timed, since they compute different things."""


@dataclass(frozen=True)
class Row:
    """One side of one benchmark; None where there is nothing to say."""

    benchmark: str
    side: str
    seconds: float | None = None
    """Of one step, or of one batch of sentences; None if it was not timed."""
    memory: int | None = None
    """Peak bytes."""
    items: int = 0
    """Tokens or sentences in that time."""
    unit: str = ""
    """What the items are."""
    utilisation: float | None = None
    """Model FLOPs per second over the rate of a matrix product."""
    problem: str = ""
    """Why it was not timed."""
    flops: float | None = None
    """Operations in that time, to be printed as TFLOP/s where the rate of a matrix product is unknown."""


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    official = {row.benchmark: row.seconds for row in rows if row.side == OFFICIAL}
    lines = [COLUMNS, *(_cells(row, official.get(row.benchmark)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _cells(row: Row, official_seconds: float | None) -> tuple[str, ...]:
    if row.seconds is None:
        return (row.benchmark, row.side, row.problem, *[""] * 4)
    speed = row.items / row.seconds
    return (
        row.benchmark,
        row.side,
        f"{row.seconds:.2f} s" if row.seconds >= 1 else f"{row.seconds * 1e3:.1f} ms",
        f"{speed:,.0f} {row.unit}/s" if speed >= 100 else f"{speed:.2f} {row.unit}/s",
        "" if official_seconds is None else f"{official_seconds / row.seconds:.2f}x",
        "" if row.memory is None else f"{row.memory / 2**30:.2f} GiB",
        _rate(row),
    )


def _rate(row: Row) -> str:
    if row.utilisation is not None:
        return f"{row.utilisation:.0%}"
    return f"{row.flops / row.seconds / 1e12:.3g} TFLOP/s" if row.flops and row.seconds else ""


def document(rows: list[Row], notes: list[str], words: list[str], device: str, module: str = "compare") -> str:
    """Command, machine, versions, table and notes, as Markdown for docs/performance.md."""
    command = shlex.join(["python", "-m", f"benchmarks.{module}", *words])
    listed = "\n".join(f"- {note}" for note in notes)
    return f"`{command}`\n\n{machine(device)}; {versions()}\n\n{table(rows)}\n\n{listed}\n"


def machine(device: str) -> str:
    """Processor, cores, torch's threads and, where it is used, the GPU."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].partition(":")[2].strip() if names else platform.machine()
    text = f"{os.cpu_count()} cores of {cpu}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name()}, {text}" if device == "cuda" else text


def versions() -> str:
    """Versions of Python and of the packages in use."""
    found = {"Python": platform.python_version(), "torch": torch.__version__}
    if "fairseq" in sys.modules:
        found["fairseq"] = sys.modules["fairseq"].__version__
    if "torchscale" in sys.modules:
        found["torchscale"] = official_version()
    if "fla" in sys.modules:
        found["flash-linear-attention"] = sys.modules["fla"].__version__
    found["torchscale_fairseq"] = torchscale_fairseq.__version__
    return ", ".join(f"{name} {version}" for name, version in found.items())
