"""Images of ordinary size, decoded whole and scaled by torch: half the work of a pipeline of libvips."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchscale_fairseq.data.images.libvips import WHITE, load_vips
from torchscale_fairseq.data.images.stored import ImageFile, StoredImage
from torchscale_fairseq.data.images.views import View

LARGEST_SIDE = 1024
"""Pixels of a scaled image that is made here, at most."""
MOST_PIXELS = 2**22
"""A decoded file has no more; those of formats with levels of detail take longer whole than their right level does."""
SHRINKS = (8, 4, 2)
"""Divisors by which a JPEG file can be scaled down while it is decoded."""


def read_ordinary(path: ImageFile, size: int, view: View) -> Tensor | None:
    """The part of an image that a view shows, scaled to a square, neither turned nor coloured.

    Args:
        path: of the file.
        size: pixels of a side.
        view: the part.

    Returns:
        (3, size, size) of uint8. None for images that are too large, that libvips does not know, or whose pixels are
        not 8 bits of grey or red, green and blue.

    Raises:
        pyvips.Error: the file cannot be decoded.
    """
    image = _open(path, size / view.width, size / view.height) if size <= LARGEST_SIDE else None
    if image is None:
        return None
    content = load_vips().Region.new(image).fetch(0, 0, image.width, image.height)
    pixels = torch.from_numpy(np.frombuffer(content, np.uint8)).view(image.height, image.width, 3)
    return _scaled(view.cut(pixels.permute(2, 0, 1)), size)


def _scaled(pixels: Tensor, size: int) -> Tensor:
    """(3, height, width) of uint8 to (3, size, size): bicubic, over as many pixels as an output pixel covers."""
    if pixels.shape[1:] == (size, size):
        return pixels
    return F.interpolate(pixels[None], (size, size), mode="bicubic", antialias=True, align_corners=False)[0]


def _open(path: ImageFile, width: float, height: float) -> Any:
    """An upright image without transparency, as libvips's pipeline; a JPEG file at the smallest scale at which it has
    ``width`` by ``height`` pixels. None if it is not ordinary."""
    vips = load_vips()
    try:
        image = _load(path)
    except vips.Error:
        return None
    if image.format != "uchar" or image.interpretation not in ("srgb", "b-w"):
        return None
    orientation = image.get("orientation") if image.get_typeof("orientation") else 1
    if orientation > 4:
        width, height = height, width
    options: dict[str, Any] = {} if orientation == 1 else {"access": "random"}
    if image.get("vips-loader").startswith("jpegload"):
        largest = min(image.width / width, image.height / height)
        options |= next(({"shrink": shrink} for shrink in SHRINKS if shrink <= largest), {})
    if options:
        image = _load(path, **options)
    if image.width * image.height > MOST_PIXELS:
        return None
    if orientation != 1:
        image = image.autorot()
    if image.hasalpha():
        image = image.flatten(background=WHITE)
    return image if image.interpretation == "srgb" else image.colourspace("srgb")


def _load(path: ImageFile, **options: Any) -> Any:
    given = {"access": "sequential", "fail_on": "error", **options}
    image = load_vips().Image
    if isinstance(path, StoredImage):
        return image.new_from_buffer(path.read(), "", **given)
    return image.new_from_file(str(path), **given)
