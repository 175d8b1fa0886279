"""Draws tokens per second and GPU over the number of GPUs: measured points, and the lines of the model."""

import math
from pathlib import Path
from typing import Any

from benchmarks.scaling.results import Results
from benchmarks.scaling.rows import ROWS, Row

COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"]
"""Of each row."""
GPUS = (1, 2, 4, 8)


def predicted(results: Results, row: Row) -> dict[int, float]:
    """Tokens per second and GPU by hooks/sharding/communication.py, by number of GPUs; empty if it has no model.

    The number of parameters is that of the fewest processes measured.
    """
    measured = results.measured(row)
    if row.prediction is None or not measured:
        return {}
    fewest = min(measured)
    tokens = row.tokens(toy=False)
    numbers = [n for n in GPUS if row.fewest <= n <= row.most]
    return {n: tokens / row.prediction(measured.get(n, measured[fewest]), tokens, n) for n in numbers}


def draw(results: Results) -> Any:
    """A panel per row that was measured."""
    from matplotlib import pyplot, rcParams

    rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "figure.constrained_layout.use": True, "savefig.dpi": 150})
    rows = [row for row in ROWS if results.measured(row)]
    columns = min(3, len(rows))
    figure, panels = pyplot.subplots(math.ceil(len(rows) / columns), columns, figsize=(9, 3.2), squeeze=False)
    for axes in panels.flat[len(rows) :]:
        axes.remove()
    for row, axes, colour in zip(rows, panels.flat, COLOURS, strict=False):
        points = {n: logged.tokens_per_second for n, logged in results.measured(row).items()}
        axes.plot(list(points), list(points.values()), "o", color=colour, label="measured")
        if line := predicted(results, row):
            axes.plot(list(line), list(line.values()), color=colour, linestyle="--", label="model")
        axes.set(title=row.name, xscale="log", xlabel="GPUs", ylabel="tokens/s and GPU")
        axes.set_xticks(GPUS, list(map(str, GPUS)))
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.suptitle("; ".join(results.machines), fontsize=6)
    return figure


def save(results: Results, path: Path) -> None:
    """Write the figure.

    Raises:
        SystemExit: nothing was measured.
    """
    import matplotlib

    matplotlib.use("agg")
    if not any(results.measured(row) for row in ROWS):
        raise SystemExit(f"scaling: {results.path} has no measured points to draw; measure rows before --figure")
    draw(results).savefig(path)
    print(f"wrote {path}")
