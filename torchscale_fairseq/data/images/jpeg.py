"""JPEG files, decoded whole by Pillow, to the pixels that libvips has for them in two thirds of the time."""

import io
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

BEGINS = b"\xff\xd8\xff"
ORIENTATION = 0x0112
"""The field of a file's EXIF that says how the camera was held; 1 if upright."""
SHRINKS = (8, 4, 2)
"""Divisors by which a JPEG file can be scaled down while it is decoded."""


def shrink_of(largest: float) -> int:
    """The divisor for a file that has up to ``largest`` times as many pixels a side as are wanted. It keeps twice as
    many as wanted: pixels can only be averaged in blocks, whose steps would show."""
    return next((shrink for shrink in SHRINKS if 2 * shrink <= largest), 1)


def decode_jpeg(source: Path | bytes, width: float, height: float, most: int) -> Tensor | None:
    """The image of a file, scaled down by ``shrink_of``.

    Args:
        source: the file, or its content.
        width, height: pixels of the whole image that are wanted.
        most: pixels, beyond which nothing is decoded.

    Returns:
        (height, width, 3) of uint8. None if the file is no upright JPEG in red, green and blue, has too many pixels, or
        is damaged, and if Pillow is not installed.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            return _decoded(file, width, height, most)
    except Exception:  # of many kinds; libvips, which reads the file then, says what is wrong with it
        return None


def _decoded(file: IO[bytes], width: float, height: float, most: int) -> Tensor | None:
    if file.read(len(BEGINS)) != BEGINS:
        return None
    file.seek(0)
    from PIL.JpegImagePlugin import JpegImageFile

    image = JpegImageFile(file)  # Image.open would refuse what is too large for it
    shrink = shrink_of(min(image.width / width, image.height / height))
    columns, rows = image.width // shrink, image.height // shrink
    if image.mode != "RGB" or columns * rows > most or image.getexif().get(ORIENTATION, 1) != 1:
        return None
    if shrink > 1:
        image.draft(None, (columns, rows))
    image.load()
    return torch.from_numpy(np.array(image))[:rows, :columns]
