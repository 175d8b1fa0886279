"""Cost of a slide encoder over the number of tiles: inference and a training step of ``slide_encoder_base``.

    python -m benchmarks.slides --tiles 1000 10000 --layers 2             # on a CPU, in float32
    python -m benchmarks.slides --device cuda --output slides.md          # 10,000 to a million tiles in bfloat16

Tiles have 1,536 values each and fill a square of the grid. In training every layer is recomputed in the backward pass,
and in both the feed-forward network goes in chunks. On a CPU each figure is from a process of its own.
"""

import argparse
import sys
from dataclasses import dataclass
from functools import partial

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
from benchmarks.report import OURS, Row
from torchscale_fairseq import SlideClassifier, SlideEncoderConfig

CLASSES = 2


@dataclass(frozen=True)
class Case:
    """One slide."""

    tiles: int
    work: str
    device: str
    layers: int
    chunk_size: int


def measure(case: Case, threads: int, repeats: int) -> tuple[float, int]:
    """Seconds and bytes, as ``cost`` returns them."""
    return cost(partial(build, case), case.work, case.device, threads, repeats)


def build(case: Case, dtype: torch.dtype) -> tuple[nn.Module, list[Tensor]]:
    """The model; features and coordinates."""
    config = SlideEncoderConfig(
        encoder_layers=case.layers, checkpoint_activations=case.work == TRAINING, ffn_chunk_size=case.chunk_size
    )
    model = SlideClassifier(config, CLASSES).to(case.device, dtype)
    features = torch.randn(1, case.tiles, config.feature_dim, device=case.device, dtype=dtype)
    return model, [features, square(case.tiles, config.tile_size).to(case.device)]


def square(tiles: int, tile_size: int) -> Tensor:
    """(1, tiles, 2), corners in pixels, row by row."""
    index, side = torch.arange(tiles), int((tiles - 1) ** 0.5) + 1
    return tile_size * torch.stack((index % side, index // side), -1)[None]


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    options = parse_options(words)
    give_back_freed_memory()
    rows = []
    for tiles in options.tiles:
        for work in (INFERENCE, TRAINING):
            case = Case(tiles, work, options.device, options.layers, options.ffn_chunk_size)
            found = found_if_it_fits(measure, case.device, case, options.threads, options.repeats)
            rows.append(Row(f"{work}, {tiles:,} tiles", OURS, *found, tiles, "tiles", problem="out of memory"))
            announce("slides", rows[-1])
    notes = [note for work in (INFERENCE, TRAINING) for note in per_item(rows, work, "tile")]
    report(rows, notes, words, options, "slides")
    return 0


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = parser_of("slides", __doc__)
    sizes = [10_000, 100_000, 1_000_000]
    parser.add_argument(
        "--tiles", type=positive, nargs="+", default=sizes, metavar="N", help="default: 10000 100000 1000000"
    )
    parser.add_argument("--layers", type=positive, default=12, metavar="N", help="of the encoder; default: 12")
    return parse(parser, words, "tiles")


if __name__ == "__main__":
    sys.exit(main())
