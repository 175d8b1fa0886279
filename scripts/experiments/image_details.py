"""LongViT on images of 2,048 pixels whose class a square of 8 pixels decides.

Trains longvit_tiny on a CPU on images that it draws: of 256 pixels, then of 512, 1,024 and 2,048, each from the model
of the size before (--finetune-from-model, which interpolates its positions). The last line of each part is the
validation on images of that size that were not trained on. A second call skips the trainings that are finished.
"""

import argparse
import shlex
from functools import partial
from pathlib import Path
from typing import NamedTuple

from scripts.experiments.steps import make_once, parser_of, step, train
from torchscale_fairseq.core.reporting import run_command


class Part(NamedTuple):
    """A size of images and how it is trained on."""

    pixels: int
    train: int
    valid: int
    batch: int
    rate: str
    updates: int


PARTS = [
    Part(256, 12000, 200, 16, "3e-4", 750),
    Part(512, 2000, 200, 16, "2e-4", 125),
    Part(1024, 2000, 200, 8, "1e-4", 250),
    Part(2048, 400, 100, 8, "5e-5", 50),
]
TRAINING = shlex.split(
    "--user-dir torchscale_fairseq --task image_classification --criterion image_classification --arch longvit_tiny "
    "--flip --rotate --optimizer adam --clip-norm 1.0 --cpu --log-format simple --log-interval 50 "
    "--no-epoch-checkpoints"
)


def parse_options() -> argparse.Namespace:
    return parser_of("image_details.py", __doc__).parse_args()


def conduct(options: argparse.Namespace) -> None:
    """Train on one size after the other."""
    start: list[str | Path] = []
    for part in PARTS:
        step(f"images of {part.pixels} pixels")
        data = options.work_dir / f"data/details-{part.pixels}"
        counts = ["--train", str(part.train), "--valid", str(part.valid), "--img-size", str(part.pixels)]
        make_once(data, ["torchscale-fairseq", "data", "draw-details", data, *counts])
        sizes = ["--img-size", str(part.pixels), "--batch-size", str(part.batch)]
        rates = ["--lr", part.rate, "--max-update", str(part.updates)]
        folder = options.work_dir / f"runs/details-{part.pixels}"
        train(folder, [data, *TRAINING, *sizes, *rates, *start])
        start = ["--finetune-from-model", folder / "checkpoint_last.pt"]


if __name__ == "__main__":
    run_command(partial(conduct, parse_options()))
