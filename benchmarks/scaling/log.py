"""Figures from the log that fairseq-train writes with --log-format json."""

import json
import re
import statistics
from dataclasses import dataclass

UNIT = 1e12


@dataclass(frozen=True)
class Logged:
    """Figures of one run."""

    tokens_per_second: float
    """Per process."""
    flops: float
    """Model FLOP/s per process."""
    memory: float
    """Peak GiB that the first process allocated on its GPU; 0 on a CPU."""
    parameters: float
    """Parameters that all processes have in common."""
    expert_parameters: float
    """Parameters of the experts that one process holds."""


def read_log(text: str) -> Logged | None:
    """The figures of a log; None if it has fewer than two lines of training.

    The first line of training, in which kernels are compiled and tuned, counts for memory only.
    """
    lines = [json.loads(line) for line in re.findall(r"\| train_inner \| (\{.*\})", text)]
    if len(lines) < 2:
        return None
    free = [float(line["gb_free"]) for line in lines if "gb_free" in line]
    total = re.search(r"total memory = ([\d.]+) GB", text)
    return Logged(
        statistics.median(float(line["tps_device"]) for line in lines[1:]),
        statistics.median(float(line["tflops"]) for line in lines[1:]) * UNIT,
        float(total[1]) - min(free) if total and free else 0.0,
        _parameters("shared", text),
        _parameters("expert", text),
    )


def _parameters(kind: str, text: str) -> float:
    found = re.search(rf"num\. {kind} model params: ([\d,]+)", text)
    return float(found[1].replace(",", "")) if found else 0.0
