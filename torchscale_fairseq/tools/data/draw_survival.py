"""Draw discs whose size sets a hazard, with tables of times, for --task image_classification --labels survival.csv.

The larger the disc, the sooner the event: the hazard grows with the exponential of the disc's width. About a third of
the events are censored. A model that knows the widths reaches a concordance index of 0.9.
"""

import argparse
import csv
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from torchscale_fairseq.tools.data.drawings import add_drawing_options, draw_splits

if TYPE_CHECKING:
    from PIL import Image

EXAMPLE = "torchscale-fairseq data draw-survival data/discs --train 80 --valid 20"
COLOUR = (50, 80, 220)
SMALLEST, LARGEST = 1 / 8, 7 / 8
"""Widths, as shares of an image's."""
SLOPE = 13.0
"""Slope of the logarithm of the hazard over the disc's width, as a share of the image's."""
CENSORED_BEFORE = 3 / 8
"""Observation ends with the hazard that a disc of this width has."""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_drawing_options(parser, train=800, valid=200, img_size=32)


def run(options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)

    def write(folder: Path, numbers: Iterable[int]) -> None:
        with (folder / "survival.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "time", "event"])
            for number in numbers:
                width = rng.uniform(SMALLEST, LARGEST)
                draw(width, rng, options.img_size).save(folder / f"{number}.png", compress_level=1)
                event, end = (waiting_time(share, rng) for share in (width, CENSORED_BEFORE))
                table.writerow([f"{number}.png", f"{min(event, end):.3f}", int(event <= end)])

    draw_splits(options, write)


def draw(width: float, rng: random.Random, size: int) -> "Image.Image":
    """A disc somewhere on a grey ground."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (size, size), (rng.randint(90, 150),) * 3)
    pixels = round(width * size)
    left, top = rng.randint(0, size - pixels), rng.randint(0, size - pixels)
    ImageDraw.Draw(image).ellipse((left, top, left + pixels - 1, top + pixels - 1), COLOUR)
    return image


def waiting_time(width: float, rng: random.Random) -> float:
    """Weibull's, of shape 4: of one order of magnitude."""
    return 100 * float(rng.expovariate(math.exp(SLOPE * width)) ** 0.25)
