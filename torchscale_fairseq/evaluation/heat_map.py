"""Shares of retrieved needles as a table and as a picture."""

import logging
from collections.abc import Sequence
from pathlib import Path

from torchscale_fairseq.core.files import make_directory, write_atomically

from .retrieval import Shares

DARK_BELOW = 60
"""Percentages whose cells are dark."""


def table(shares: Shares, lengths: Sequence[int], depths: Sequence[float]) -> str:
    """Percentages, a line per depth and a column per length in tokens."""
    lines = [["depth", *(f"{length:,}" for length in lengths)]]
    lines += [[f"{depth:.0%}", *(f"{shares[length, depth]:.0%}" for length in lengths)] for depth in depths]
    means = (sum(shares[length, depth] for depth in depths) / len(depths) for length in lengths)
    lines.append(["mean", *(f"{mean:.0%}" for mean in means)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def prepare_drawing() -> None:
    """Import what ``draw`` needs, before the work whose result it draws.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq sets the root logger to DEBUG
    import matplotlib

    matplotlib.use("Agg")


def draw(shares: Shares, lengths: Sequence[int], depths: Sequence[float], title: str, path: Path) -> None:
    """Write a heat map, in the format of the file's ending."""
    prepare_drawing()
    from matplotlib import pyplot

    values = [[100 * shares[length, depth] for length in lengths] for depth in depths]
    figure, axis = pyplot.subplots(figsize=(2 + 0.8 * len(lengths), 1.5 + 0.5 * len(depths)), constrained_layout=True)
    image = axis.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    axis.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=45, ha="right")
    axis.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axis.set(title=title, xlabel="tokens", ylabel="depth of the needle")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            colour = "white" if value < DARK_BELOW else "black"
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, label="% retrieved")
    make_directory(path.parent)
    with write_atomically(path) as scratch:
        figure.savefig(scratch, dpi=150, format=path.suffix.removeprefix(".") or "png")
    pyplot.close(figure)
