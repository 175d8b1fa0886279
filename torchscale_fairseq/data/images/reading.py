"""The one reader of image files, of whatever kind: red, green and blue of 8 bits, as people see the image.

libvips reads most formats; Pillow reads the others, such as BMP, which then are whole in memory. Most images that are
not large take half the time by ``read_ordinary``.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchscale_fairseq.data.images.libvips import load_vips, on_white
from torchscale_fairseq.data.images.ordinary import read_ordinary
from torchscale_fairseq.data.images.stored import ImageFile, StoredImage
from torchscale_fairseq.data.images.views import View
from torchscale_fairseq.data.problems import DataError

DEPTHS = ("uchar", "ushort")
"""libvips's names of 8 and 16 bits, for which it is known how bright the largest number is."""
OTHER_DEPTH = "whose largest value is not known; convert it to 8 or 16 bits"
NO_LOADER = ("not a known file format", "not in a known format")
"""libvips's messages on files and on bytes of another format."""
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def load_image(path: ImageFile, size: int) -> Tensor:
    """An image, scaled to a square.

    Args:
        path: of the file.
        size: pixels of a side.

    Returns:
        (3, size, size), float32 in [-1, 1].

    Raises:
        DataError: the file is missing or is not an image that can be read.
        ModuleNotFoundError: pyvips is not installed.
    """
    return load_pixels(path, size).float() / 127.5 - 1.0


def load_pixels(path: ImageFile, size: int) -> Tensor:
    """An image, scaled to a square, as (3, size, size) of uint8; arguments and errors are those of ``load_image``."""
    with errors_named(path):
        ordinary = read_ordinary(path, size, View())
        if ordinary is not None:
            return ordinary
        pixels = np.frombuffer(open_image(path, size).write_to_memory(), np.uint8).reshape(size, size, 3)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def open_image(path: ImageFile, width: int, height: int | None = None) -> Any:
    """An image, scaled to ``width`` by ``height`` pixels, as a pipeline of libvips that has computed nothing yet.
    Without a height it is scaled to a square.

    An animation's first picture is taken, the camera's orientation (EXIF) applied, and transparency put on white.
    Colours are converted to sRGB. JPEG, WebP and pyramids in TIFF are decoded at reduced scale.

    Raises:
        pyvips.Error: the file is missing or is not an image that can be read; see ``errors_named``.
        DataError: the range of its brightness is not known, or it has other channels than colours.
    """
    vips = load_vips()
    options = {"height": height or width, "size": "force", "fail_on": "error"}
    try:
        if isinstance(path, StoredImage):
            content = path.read()
            image, whole = (
                vips.Image.thumbnail_buffer(content, width, **options),
                vips.Image.new_from_buffer(content, ""),
            )
        else:
            image, whole = vips.Image.thumbnail(str(path), width, **options), vips.Image.new_from_file(str(path))
        _check_depth(whole, path)
    except vips.Error as error:
        if not any(message in str(error) for message in NO_LOADER):
            raise
        image = vips.Image.thumbnail_buffer(_as_png(path), width, **options)
    image = on_white(image).colourspace("srgb").cast("uchar")
    if image.bands != 3:
        raise _unreadable(path, f"it has {image.bands} channels besides transparency; convert it to RGB")
    return image


@contextlib.contextmanager
def errors_named(path: ImageFile) -> Iterator[None]:
    """Turn errors of libvips into a DataError that names the file."""
    vips = load_vips()
    try:
        yield
    except vips.Error as error:
        if not path.exists():
            raise DataError(f"{path} does not exist.") from None
        reason = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise _unreadable(path, reason) from None


def _check_depth(image: Any, path: ImageFile) -> None:
    if image.format not in DEPTHS and image.interpretation in ("b-w", "multiband", "srgb"):
        raise _unreadable(path, f"its pixels are numbers of the type {image.format}, {OTHER_DEPTH}")


def _as_png(path: ImageFile) -> bytes:
    """An image of a format that Pillow alone reads."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError:
        raise _unreadable(path, "libvips does not know its format, and Pillow is not installed") from None
    content = io.BytesIO()
    try:
        with Image.open(io.BytesIO(path.read()) if isinstance(path, StoredImage) else path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode not in PNG_MODES:
                if upright.mode[0] in "IF":
                    raise _unreadable(path, f"its pixels are of Pillow's mode {upright.mode}, {OTHER_DEPTH}")
                upright = upright.convert("RGB")
            upright.save(content, "png", compress_level=0)
    except UnidentifiedImageError:
        raise _unreadable(path, "its format is not known") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise _unreadable(path, str(error)) from None
    return content.getvalue()


def _unreadable(path: ImageFile, reason: str) -> DataError:
    return DataError(f"{path} is not an image that can be read: {reason}.")
