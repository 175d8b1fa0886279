"""Time and memory of a training step over the length of the sequence."""

from pathlib import Path

from benchmarks.report import Row

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#56B4E9", "#CC79A7", "#000000")
"""Okabe and Ito's, which colour-blind readers tell apart."""
MARKERS = "osD^vx"


def draw(rows: list[Row], path: Path) -> None:
    """Write a picture of the first benchmark among the rows that has lengths, one line per side."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    name = rows[0].benchmark.partition(",")[0]
    rows = [row for row in rows if row.benchmark.startswith(f"{name},") and row.seconds is not None]
    lengths = sorted({row.items for row in rows})
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for side, colour, marker in zip(dict.fromkeys(row.side for row in rows), COLOURS, MARKERS, strict=False):
        of_side = [(row.items, row.seconds or 0.0, row.memory or 0) for row in rows if row.side == side]
        look = {"color": colour, "marker": marker, "label": side}
        panels[0].plot([items for items, _, _ in of_side], [s / items * 1e6 for items, s, _ in of_side], **look)
        panels[1].plot([items for items, _, _ in of_side], [memory / 2**30 for _, _, memory in of_side], **look)
    for panel, label in zip(panels, ("microseconds per token", "memory (GiB)"), strict=True):
        panel.set(xscale="log", xlabel=f"length (tokens): {name}, training step", ylabel=label)
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        panel.set_xticks(lengths, [f"{length:,}" for length in lengths])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(COLOURS))
    figure.savefig(path, dpi=150)
