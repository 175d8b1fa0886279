"""How an image is looked at in training: which part of it, from which side, in which colours."""

from dataclasses import dataclass

import numpy as np

GREY = (0.2126, 0.7152, 0.0722)
"""Shares of red, green and blue in brightness (ITU-R BT.709)."""


@dataclass(frozen=True)
class View:
    """A square part of an image, turned and coloured. By default the image as it is."""

    left: float = 0.0
    top: float = 0.0
    side: float = 1.0
    """All as shares of the image's width and height."""
    transposed: bool = False
    """Rows become columns; this comes before the reversals."""
    rows_reversed: bool = False
    columns_reversed: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0

    @property
    def has_other_colours(self) -> bool:
        """Whether colours change at all."""
        return (self.brightness, self.contrast, self.saturation) != (1.0, 1.0, 1.0)

    def colours(self) -> tuple[list[list[float]], float]:
        """A matrix and an offset, which take colours from 0 to 255 to others; contrast is about the middle of the
        range, so that no pixel depends on others."""
        grey = np.tile(GREY, (3, 1))
        matrix = self.contrast * self.brightness * (self.saturation * np.eye(3) + (1 - self.saturation) * grey)
        return matrix.tolist(), (1 - self.contrast) * 127.5


@dataclass(frozen=True)
class Augmentation:
    """The random augmentation of images, drawn for each image and epoch."""

    flip: bool = False
    rotate: bool = False
    min_crop: float = 1.0
    """Smallest share of the image's area."""
    color_jitter: float = 0.0
    """Largest change of brightness, contrast and saturation, as a share."""

    def draw(self, rng: np.random.Generator) -> View:
        """A view; the same numbers are drawn whichever options are on."""
        area, left, top = rng.uniform(self.min_crop, 1.0), rng.random(), rng.random()
        quarters, mirrored = rng.integers(4), rng.random(2) < 0.5
        factors = 1.0 + self.color_jitter * rng.uniform(-1.0, 1.0, 3)
        rows, columns = (bool(x) for x in mirrored & self.flip)
        transposed = False
        if self.rotate:
            turned = quarters % 2 == 1
            rows, columns = rows ^ (quarters in (2, 3)), columns ^ (quarters in (1, 2))
            transposed = bool(turned)
        side = float(np.sqrt(area))
        return View(
            left=left * (1 - side),
            top=top * (1 - side),
            side=side,
            transposed=transposed,
            rows_reversed=bool(rows),
            columns_reversed=bool(columns),
            brightness=float(factors[0]),
            contrast=float(factors[1]),
            saturation=float(factors[2]),
        )
