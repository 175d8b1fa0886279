"""Draws discs whose size sets a hazard, with tables of times, for --task image_classification --labels survival.csv.

The larger the disc, the sooner the event, whose hazard grows with the exponential of the disc's width. About a third of
the events is censored. Whoever knows the widths reaches a concordance index of 0.9.
"""

import argparse
import csv
import math
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

COLOUR = (50, 80, 220)
SMALLEST, LARGEST = 1 / 8, 7 / 8
"""Widths, as shares of an image's."""
SLOPE = 13.0
"""Of the logarithm of the hazard, in such shares."""
CENSORED_BEFORE = 3 / 8
"""Observation ends with the hazard that a disc of this width has."""


def main() -> int:
    options = parse_options()
    rng = random.Random(options.seed)
    try:
        for split, count in (("train", options.train), ("valid", options.valid)):
            (options.output / split).mkdir(parents=True)
            write(options.output / split, count, rng, options.img_size)
    except OSError as error:
        print(f"draw_survival.py: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.train} and {options.valid} images to {options.output}")
    return 0


def write(folder: Path, count: int, rng: random.Random, size: int) -> None:
    """Images, and the table beside them."""
    with (folder / "survival.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "time", "event"])
        for number in range(count):
            width = rng.uniform(SMALLEST, LARGEST)
            draw(width, rng, size).save(folder / f"{number}.png", compress_level=1)
            event, end = (waiting_time(share, rng) for share in (width, CENSORED_BEFORE))
            table.writerow([f"{number}.png", f"{min(event, end):.3f}", int(event <= end)])


def draw(width: float, rng: random.Random, size: int) -> Image.Image:
    """A disc somewhere on a grey ground."""
    image = Image.new("RGB", (size, size), (rng.randint(90, 150),) * 3)
    pixels = round(width * size)
    left, top = rng.randint(0, size - pixels), rng.randint(0, size - pixels)
    ImageDraw.Draw(image).ellipse((left, top, left + pixels - 1, top + pixels - 1), COLOUR)
    return image


def waiting_time(width: float, rng: random.Random) -> float:
    """Weibull's, of shape 4: of one order of magnitude."""
    return 100 * float(rng.expovariate(math.exp(SLOPE * width)) ** 0.25)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="draw_survival.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, metavar="DIR", help="a directory that does not exist yet")
    parser.add_argument("--train", type=int, default=800, metavar="N", help="training images; default 800")
    parser.add_argument("--valid", type=int, default=200, metavar="N", help="validation images; default 200")
    parser.add_argument("--img-size", type=int, default=32, metavar="N", help="pixels of a side; default 32")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the drawings; default 1")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
