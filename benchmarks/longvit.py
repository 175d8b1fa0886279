"""LongViT's cost over the size of an image: inference and a training step of the released small model.

    python -m benchmarks.longvit --sizes 1024 2048 4096                # on a CPU, in float32
    python -m benchmarks.longvit --device cuda --output longvit.md     # 1,024 to 16,384 pixels in bfloat16

Patches of 32 pixels, 12 layers of width 384, the released segments of each size; every layer is recomputed in the
backward pass and its feed-forward network goes in chunks. For comparison, up to --dense-up-to, the model with dense
attention by torch's fused kernel. On a CPU each figure is from a process of its own.
"""

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compare import positive
from benchmarks.large_inputs import (
    INFERENCE,
    TRAINING,
    announce,
    cost,
    found_if_it_fits,
    give_back_freed_memory,
    parse,
    parser_of,
    per_item,
    report,
)
from benchmarks.report import DENSE, OURS, Row
from torchscale_fairseq import LongViTClassifier, LongViTConfig

CLASSES = 2


@dataclass(frozen=True)
class Case:
    """One image of one side."""

    size: int
    side: str
    work: str
    device: str
    chunk_size: int

    @property
    def patches(self) -> int:
        return (self.size // LongViTConfig().patch_size) ** 2

    @property
    def title(self) -> str:
        return f"{self.work}, {self.size:,} pixels ({self.patches:,} patches)"


def measure(case: Case, threads: int, repeats: int) -> tuple[float, int]:
    """Seconds and bytes, as ``cost`` returns them."""
    return cost(partial(build, case), case.work, case.device, threads, repeats)


def build(case: Case, dtype: torch.dtype) -> tuple[nn.Module, list[Tensor]]:
    """The model and one image."""
    dense: dict[str, Any] = {} if case.side == OURS else {"segment_length": [case.patches], "dilated_ratio": [1]}
    config = LongViTConfig(
        img_size=case.size, checkpoint_activations=case.work == TRAINING, ffn_chunk_size=case.chunk_size, **dense
    )
    model = LongViTClassifier(config, CLASSES).to(case.device, dtype)
    return model, [torch.randn(1, config.in_chans, case.size, case.size, device=case.device, dtype=dtype)]


def row_of(case: Case, options: argparse.Namespace) -> Row:
    """Without a time if the GPU's memory does not suffice."""
    seconds, memory = found_if_it_fits(measure, case.device, case, options.threads, options.repeats)
    return Row(case.title, case.side, seconds, memory, case.patches, "patches", problem="out of memory")


def per_patch(rows: list[Row]) -> list[str]:
    """How the cost of a patch changes with the size, and how dense attention compares."""
    notes = []
    for work in (INFERENCE, TRAINING):
        notes += per_item(rows, work, "patch")
        own = {row.items: row.seconds for row in rows if row.benchmark.startswith(work) and row.side == OURS}
        for row in rows:
            ours = own.get(row.items)
            if row.benchmark.startswith(work) and row.side == DENSE and row.seconds and ours:
                times = row.seconds / ours
                notes.append(f"{work}, {row.items:,} patches: {times:.2f} times as fast as with dense attention.")
    return notes


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    options = parse_options(words)
    give_back_freed_memory()
    rows = []
    for size in options.sizes:
        for work in (INFERENCE, TRAINING):
            for side in (OURS, DENSE) if size <= options.dense_up_to else (OURS,):
                rows.append(row_of(Case(size, side, work, options.device, options.ffn_chunk_size), options))
                announce("longvit", rows[-1])
    report(rows, per_patch(rows), words, options, "longvit")
    return 0


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = parser_of("longvit", __doc__)
    sizes = [1024, 2048, 4096, 8192, 16384]
    parser.add_argument(
        "--sizes", type=positive, nargs="+", default=sizes, metavar="N", help="pixels; default: 1024 to 16384"
    )
    parser.add_argument("--dense-up-to", type=positive, default=4096, metavar="N", help="pixels; default: 4096")
    return parse(parser, words, "patches")


if __name__ == "__main__":
    sys.exit(main())
