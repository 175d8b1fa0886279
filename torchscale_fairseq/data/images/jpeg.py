"""JPEG files, decoded whole by Pillow, to the pixels that libvips has for them: 500 x 375 pixels in two thirds of its
time."""

import io
import re
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

BEGINS = b"\xff\xd8\xff"
TURNED = re.compile(
    rb"\x12\x01[\x01\x03\x04\x06\x08\x09]\0.{4}(?!\x01\0)|\x01\x12\0[\x01\x03\x04\x06\x08\x09].{4}(?!\0\x01)", re.DOTALL
)
"""An orientation in EXIF, least or most significant byte first, that is not upright. Pillow finds none in EXIF that is
damaged further ahead, and libvips does."""
RESTARTS = b"\xff\xdd\0\x04"
"""In the head of a file that can be decoded further after a damaged place; libvips refuses one with many of them."""


def decode_jpeg(source: Path | bytes, width: float, height: float, most: int) -> Tensor | None:
    """The image of a file.

    Args:
        source: the file, or its content.
        width, height: of images that are worth decoding at reduced scale, which Pillow does not do safely: it writes
            beyond its memory if the file is a lossless JPEG.
        most: pixels, beyond which nothing is decoded.

    Returns:
        (height, width, 3) of uint8. None if the file is no upright JPEG in red, green and blue without restarts, is too
        large, or ends too early, and if Pillow is not installed.
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
    from PIL import ImageFile
    from PIL.JpegImagePlugin import JpegImageFile

    image = JpegImageFile(file)  # Image.open would refuse what is too large for it
    length = file.tell()
    file.seek(0)
    head = file.read(length)
    is_large = image.width * image.height > most or (image.width >= width and image.height >= height)
    is_turned = TURNED.search(image.info.get("exif", b"")) is not None
    if image.mode != "RGB" or is_large or is_turned or RESTARTS in head or ImageFile.LOAD_TRUNCATED_IMAGES:
        return None
    image.load()
    return torch.from_numpy(np.array(image))
