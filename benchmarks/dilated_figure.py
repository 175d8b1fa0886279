"""Draws cost over length from the numbers of dilated.py, in their folder: FILE.json becomes FILE.png.

pip install -r requirements/experiments.txt   # matplotlib
python -m benchmarks.dilated_figure docs/figures/dilated_attention.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

LOOKS = {"dense": ("#E69F00", "s"), "ours": ("#0072B2", "o"), "layer": ("#009E73", "^")}
"""Colour and marker of each side."""
NAMES = {"dense": "dense attention", "ours": "dilated attention", "layer": "a LongNet layer"}
BOTH = "forward and backward"


def draw(report: dict[str, Any]) -> Any:
    """Seconds, and peak memory, of forward and backward over the length."""
    from matplotlib import pyplot, rcParams

    rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "figure.constrained_layout.use": True, "savefig.dpi": 150})
    figure, (times, memories) = pyplot.subplots(1, 2, figsize=(9, 4))
    rows = [row for row in report["rows"] if row["work"] == BOTH and row["seconds"] is not None]
    for side in dict.fromkeys(row["side"] for row in rows):
        colour, marker = LOOKS[side]
        own = [row for row in rows if row["side"] == side]
        lengths = [row["length"] for row in own]
        times.plot(lengths, [row["seconds"] for row in own], color=colour, marker=marker, label=NAMES[side])
        gibibytes = [(length, row["memory"] / 2**30) for length, row in zip(lengths, own, strict=True) if row["memory"]]
        memories.plot(*zip(*gibibytes, strict=True), color=colour, marker=marker)
    times.set_ylabel("seconds, forward and backward")
    memories.set_ylabel("peak memory (GiB)")
    lengths = sorted({row["length"] for row in rows})
    for axes in (times, memories):
        axes.set(xscale="log", yscale="log", xlabel="tokens")
        axes.set_xticks(lengths, [f"{length // 1024}k" for length in lengths])
        axes.minorticks_off()
    times.legend()
    title = f"{report['dtype']}, {report['heads']} heads of {report['head_dim']}: {report['machine']}"
    figure.suptitle(title, fontsize=9)
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, metavar="FILE.json", help="what dilated.py --json wrote")
    path = parser.parse_args().report
    try:
        import matplotlib
    except ImportError:
        print("dilated_figure.py: matplotlib is missing; pip install -r requirements/experiments.txt", file=sys.stderr)
        return 1
    matplotlib.use("agg")
    draw(json.loads(path.read_text())).savefig(path.with_suffix(".png"))
    print(f"wrote {path.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
