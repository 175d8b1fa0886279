"""Draw images in which a small square decides the class, in a folder per class as --task image_classification reads.

Each image has a background of greyish rectangles and one square, red or blue, at a random place. The background is
tinted so that the mean colour of an image does not reveal its class.
"""

import argparse
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.tools.data.drawings import add_drawing_options, draw_splits
from torchscale_fairseq.tools.options import positive

if TYPE_CHECKING:
    from PIL import Image

EXAMPLE = "torchscale-fairseq data draw-details data/details --img-size 256 --train 20 --valid 10"
CLASSES = {"blue": (0, 0, 255), "red": (255, 0, 0)}
GREY, SPREAD, TINT = 128, 12, 2
RECTANGLES = 40


def add_options(parser: argparse.ArgumentParser) -> None:
    add_drawing_options(parser, train=400, valid=100, img_size=2048)
    parser.add_argument(
        "--detail", type=positive, default=8, metavar="N", help="side of the square in pixels (default: 8)"
    )


def run(options: argparse.Namespace) -> None:
    if options.detail > options.img_size:
        raise InputError(f"--detail ({options.detail}) must lie between 1 and --img-size ({options.img_size})")
    rng = random.Random(options.seed)

    def write(folder: Path, numbers: Iterable[int]) -> None:
        for name in CLASSES:
            (folder / name).mkdir()
        for number in numbers:
            name = sorted(CLASSES)[number % len(CLASSES)]
            image = draw(CLASSES[name], rng, options.img_size, options.detail)
            image.save(folder / name / f"{number}.png", compress_level=1)

    draw_splits(options, write)


def draw(colour: tuple[int, int, int], rng: random.Random, size: int, detail: int) -> "Image.Image":
    """An image with a square of the colour."""
    from PIL import Image, ImageDraw

    def tone() -> tuple[int, ...]:
        grey = rng.randint(GREY - SPREAD, GREY + SPREAD)
        return tuple(grey + rng.randint(-TINT, TINT) for _ in range(3))

    image = Image.new("RGB", (size, size), tone())
    pen = ImageDraw.Draw(image)
    for _ in range(RECTANGLES):
        left, top = rng.randrange(size), rng.randrange(size)
        width, height = (rng.randint(size // 40, size // 3) for _ in range(2))
        pen.rectangle((left, top, left + width, top + height), tone())
    left, top = rng.randrange(size - detail + 1), rng.randrange(size - detail + 1)
    pen.rectangle((left, top, left + detail - 1, top + detail - 1), colour)
    return image
