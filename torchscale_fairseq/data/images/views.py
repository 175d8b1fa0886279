"""How an image is looked at in training: which part of it, from which side, in which colours."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GREY = (0.2126, 0.7152, 0.0722)
"""Shares of red, green and blue in brightness (ITU-R BT.709)."""


@dataclass(frozen=True)
class View:
    """A part of an image, turned and coloured, that becomes a square. By default the image as it is."""

    left: float = 0.0
    top: float = 0.0
    side: float = 1.0
    """All as shares of the image's width and height."""
    aspect: float = 1.0
    """Width to height of the part, relative to the image's own; ``side`` is the geometric mean of both shares."""
    transposed: bool = False
    """Rows become columns; this comes before the reversals."""
    rows_reversed: bool = False
    columns_reversed: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0

    @property
    def width(self) -> float:
        """Share of the image's width."""
        return self.side * math.sqrt(self.aspect)

    @property
    def height(self) -> float:
        """Share of the image's height."""
        return self.side / math.sqrt(self.aspect)

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

    def cut(self, pixels: Tensor) -> Tensor:
        """The part of (channels, height, width), whole pixels, at least one."""
        left, width = _interval(self.left, self.width, pixels.size(2))
        top, height = _interval(self.top, self.height, pixels.size(1))
        return pixels[:, top : top + height, left : left + width]

    def coloured(self, pixels: Tensor) -> Tensor:
        """(..., 3, height, width), uint8 or float, in the colours of the view."""
        if not self.has_other_colours:
            return pixels
        matrix, offset = self.colours()
        with torch.autocast(pixels.device.type, enabled=False):
            mixed = torch.einsum("oc,...chw->...ohw", torch.tensor(matrix), pixels.float())
        mixed.add_(offset).clamp_(0, 255)
        return mixed if pixels.is_floating_point() else mixed.round_().to(pixels.dtype)

    def turned(self, pixels: Tensor) -> Tensor:
        """(..., height, width), seen from the view's side."""
        if self.transposed:
            pixels = pixels.transpose(-2, -1)
        reversed_axes = [-2] * self.rows_reversed + [-1] * self.columns_reversed
        return pixels.flip(reversed_axes) if reversed_axes else pixels


def _interval(start: float, length: float, whole: int) -> tuple[int, int]:
    """Start and length in pixels of a part of ``whole`` pixels."""
    pixels = max(1, round(length * whole))
    return min(round(start * whole), whole - pixels), pixels


@dataclass(frozen=True)
class Augmentation:
    """The random augmentation of images, drawn for each image and epoch."""

    flip: bool = False
    rotate: bool = False
    min_crop: float = 1.0
    """Smallest share of the image's area."""
    color_jitter: float = 0.0
    """Largest change of brightness, contrast and saturation, as a share."""
    horizontal_flip: bool = False
    crop_aspect: float = 1.0
    """Largest width to height, or height to width, of the part, relative to the image's own."""
    max_crop: float = 1.0
    """Largest share of the image's area."""

    def draw(self, rng: np.random.Generator) -> View:
        """A view; the same numbers are drawn whichever options are on."""
        area, left, top = rng.uniform(self.min_crop, self.max_crop), rng.random(), rng.random()
        quarters, mirrored = rng.integers(4), rng.random(2) < 0.5
        factors = 1.0 + self.color_jitter * rng.uniform(-1.0, 1.0, 3)
        rows, columns = (bool(x) for x in mirrored & self.flip)
        transposed = False
        if self.rotate:
            turned = quarters % 2 == 1
            rows, columns = rows ^ (quarters in (2, 3)), columns ^ (quarters in (1, 2))
            transposed = bool(turned)
        stretch, reversed_columns = rng.uniform(-1, 1) * math.log(self.crop_aspect), rng.random() < 0.5
        side = float(np.sqrt(area))
        widest = 2 * abs(math.log(side))
        part = View(side=side, aspect=math.exp(min(max(stretch, -widest), widest)))
        return View(
            left=left * (1 - part.width),
            top=top * (1 - part.height),
            side=side,
            aspect=part.aspect,
            transposed=transposed,
            rows_reversed=bool(rows),
            columns_reversed=bool(columns ^ (self.horizontal_flip and reversed_columns)),
            brightness=float(factors[0]),
            contrast=float(factors[1]),
            saturation=float(factors[2]),
        )
