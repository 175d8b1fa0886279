"""Draw how the experts of training runs were used, from their TensorBoard logs, and print a table of the last values.
A run without experts is shown with its loss alone."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory, write_atomically

EXAMPLE = "torchscale-fairseq plot-expert-load runs/en-de-xmoe --output load.png"
INNER, VALID = "train_inner", "valid"


@dataclass(frozen=True)
class Panel:
    """One diagram: scalars of one kind of log."""

    title: str
    unit: str
    log: str
    scalars: tuple[str, ...]


PANELS = (
    Panel("Validation: loss, and nll_loss (dotted)", "bits per token", VALID, ("loss", "nll_loss")),
    Panel("Most and least used (dotted) expert", "% of an even share", INNER, ("moe_load_most", "moe_load_least")),
    Panel("Choices that found no place", "%", INNER, ("moe_dropped",)),
    Panel("Entropy of the gate", "nats", INNER, ("moe_entropy",)),
    Panel("Experts without a token", "experts per layer", INNER, ("moe_unused",)),
    Panel("Balance loss", "1 is even", INNER, ("moe_gate_loss",)),
)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind readers tell apart."""

Curve = list[tuple[int, float]]
"""Updates and values."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="the --tensorboard-logdir of a run, or the folder with its subfolder tensorboard",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the figure to write, .png or .pdf")


def run(options: argparse.Namespace) -> None:
    curves = {name_of(run): read_curves(run) for run in options.runs}
    print(table(curves))
    draw(curves, options.output)
    print(f"wrote {options.output}")


def name_of(run: Path) -> str:
    """The name of a run in the figure: its folder."""
    return run.parent.name if run.name == "tensorboard" else run.name


def read_curves(run: Path) -> dict[tuple[str, str], Curve]:
    """All curves of a run that the panels show, by log and scalar.

    Raises:
        InputError: there are none.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run / "tensorboard" if (run / "tensorboard").is_dir() else run
    found = {}
    for log in (INNER, VALID):
        if not (folder / log).is_dir():
            continue
        events = EventAccumulator(str(folder / log), size_guidance={"scalars": 0}).Reload()
        for scalar in events.Tags()["scalars"]:
            found[log, scalar] = [(event.step, event.value) for event in events.Scalars(scalar)]
    if not found:
        raise InputError(
            f"{run} has no TensorBoard logs of fairseq; train with --tensorboard-logdir and name that folder"
        )
    return found


def shown(curves: dict[tuple[str, str], Curve], panel: Panel) -> list[tuple[str, Curve]]:
    """The curves of a run that belong in a panel."""
    return [(name, curves.get((panel.log, name), [])) for name in panel.scalars]


def table(runs: dict[str, dict[tuple[str, str], Curve]]) -> str:
    """The last value of each curve, a line per run."""
    columns = [
        "run",
        "update",
        "loss",
        "nll_loss",
        "most used",
        "least used",
        "dropped",
        "entropy",
        "unused",
        "balance",
    ]
    rows = [columns]
    for name, curves in runs.items():
        values = [curve for panel in PANELS for _, curve in shown(curves, panel)]
        last = [f"{curve[-1][1]:.3f}" if curve else "-" for curve in values]
        update = max(curve[-1][0] for curve in curves.values() if curve)
        rows.append([name, str(update), *last])
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def draw(runs: dict[str, dict[tuple[str, str], Curve]], path: Path) -> None:
    """One diagram per panel, one colour per run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7), constrained_layout=True)
    for axis, panel in zip(axes.flat, PANELS, strict=True):
        for (name, curves), colour in zip(runs.items(), COLOURS * len(runs), strict=False):
            for (_, curve), style in zip(shown(curves, panel), ("-", ":"), strict=False):
                axis.plot(
                    [update for update, _ in curve],
                    [value for _, value in curve],
                    style,
                    color=colour,
                    label=name if style == "-" else None,
                )
        axis.set(title=panel.title, xlabel="updates", ylabel=panel.unit)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].legend()
    make_directory(path.parent)
    with write_atomically(path) as scratch:
        figure.savefig(scratch, dpi=150, format=path.suffix.removeprefix(".") or "png")
