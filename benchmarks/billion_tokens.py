"""What a sequence of a billion tokens takes, computed from the numbers of dilated.py.

    python -m benchmarks.billion_tokens docs/figures/dilated_attention.json --memory-gb 80

A device holds as many tokens as its memory has room for at the measured bytes per token: the difference of peaks
between the two longest lengths over the difference of lengths. It takes the measured seconds per token of the longest
length, more by the work of the branches that a billion tokens add: segments and ratios go on doubling until a segment
is the sequence. What devices gather from each other is counted, not timed; docs/performance.md says what is left out.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ATTENTION, LAYER = "ours", "layer"
FORWARD, BOTH = "forward", "forward and backward"
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Task:
    """What is asked, and of what."""

    report: dict[str, Any]
    tokens: int
    memory: int
    """Bytes of a device."""
    layers: int

    @property
    def branches(self) -> list[tuple[int, int]]:
        """Segment lengths and ratios: the measured ones, and their last one doubled until it is the sequence."""
        found = list(zip(self.report["segment_lengths"], self.report["dilation_ratios"], strict=True))
        while found[-1][0] < self.tokens:
            found.append((2 * found[-1][0], 2 * found[-1][1]))
        return found

    @property
    def more_work(self) -> float:
        """Work of all branches over that of the measured ones. A token takes part in 1 / ratio of a branch's heads,
        and there sees segment / ratio keys."""
        work = [segment / ratio**2 for segment, ratio in self.branches]
        return sum(work) / sum(work[: len(self.report["segment_lengths"])])

    @property
    def bytes_of_a_vector(self) -> int:
        """Of one token, of model width."""
        return self.report["heads"] * self.report["head_dim"] * BYTES[self.report["dtype"]]

    def rows(self, side: str, work: str) -> list[dict[str, Any]]:
        """The shortest length first."""
        rows = [r for r in self.report["rows"] if (r["side"], r["work"]) == (side, work) and r["seconds"] is not None]
        return sorted(rows, key=lambda row: row["length"])

    def bytes_per_token(self, side: str) -> float:
        """At the peak of forward and backward."""
        before, last = list(pairwise(self.rows(side, BOTH)))[-1]
        return (last["memory"] - before["memory"]) / (last["length"] - before["length"])

    def seconds_per_token(self, side: str, work: str) -> float:
        """At the longest length. A layer's projections and feed-forward network do not grow with the branches."""
        last = self.rows(side, work)[-1]
        seconds = last["seconds"] / last["length"]
        if side == ATTENTION:
            return seconds * self.more_work
        return seconds + self.seconds_per_token(ATTENTION, work) * (1 - 1 / self.more_work)

    def gathered(self, tokens_per_device: int) -> int:
        """Bytes of keys and values that a device gets, at most, for the segments that are longer than its slice."""
        kept = [segment // ratio for segment, ratio in self.branches if segment > tokens_per_device]
        return sum(2 * keys * self.bytes_of_a_vector for keys in kept)


def table(task: Task) -> Iterator[str]:
    """As Markdown."""
    yield "| | bytes a token | tokens a device | devices | forward | forward and backward | gathered by a device |"
    yield "|---|---|---|---|---|---|---|"
    width = task.report["heads"] * task.report["head_dim"]
    for name, side, layers in (
        (f"attention alone, {task.report['heads']} heads of {task.report['head_dim']}", ATTENTION, 1),
        (f"{task.layers} layers of width {width}, recomputed", LAYER, task.layers),
    ):
        per_token = task.bytes_per_token(side) + (layers - 1) * task.bytes_of_a_vector
        tokens = int(task.memory / per_token)
        forward = layers * tokens * task.seconds_per_token(side, FORWARD) if side == ATTENTION else None
        both = layers * tokens * task.seconds_per_token(side, BOTH)
        cells = (
            name,
            f"{per_token:,.0f}",
            f"{tokens:,.0f}",
            f"{-(-task.tokens // tokens):,}",
            "" if forward is None else f"{forward:,.1f} s",
            f"{both:,.1f} s",
            f"{layers * task.gathered(tokens) / 1e6:,.0f} MB",
        )
        yield "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("report", type=Path, metavar="FILE.json", help="what dilated.py --json wrote, with two lengths or more")
    add("--tokens", type=int, default=10**9, metavar="N", help="default: a billion")
    add("--memory-gb", type=float, default=80.0, metavar="GB", help="memory of a device; default: 80")
    add("--layers", type=int, default=12, metavar="N", help="of the model; default: 12")
    options = parser.parse_args()
    report = json.loads(options.report.read_text())
    task = Task(report, options.tokens, int(options.memory_gb * 1e9), options.layers)
    print(
        f"{options.tokens:,} tokens on devices of {options.memory_gb:g} GB, by {report['machine']}, {report['dtype']}:"
    )
    print()
    print("\n".join(table(task)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
