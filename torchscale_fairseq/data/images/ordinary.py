"""Images of ordinary size, decoded whole and scaled by torch: half the work of a pipeline of libvips."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchscale_fairseq.data.images.jpeg import decode_jpeg
from torchscale_fairseq.data.images.libvips import load_vips, on_white
from torchscale_fairseq.data.images.stored import ImageFile, StoredImage
from torchscale_fairseq.data.images.views import View

LARGEST_SIDE = 1024
"""Pixels of a scaled image that is made here, at most."""
MOST_PIXELS = 2**21
"""Most pixels of a decoded file; libvips's pipeline takes no longer for more."""
SHRINKS = (8, 4, 2)
"""Divisors by which a JPEG file can be scaled down while it is decoded."""
DRAWINGS = ("svgload", "pdfload")
"""libvips's readers of formats that have no pixels of their own."""


def read_ordinary(path: ImageFile, size: int, view: View) -> Tensor | None:
    """The part of an image that a view shows, scaled to a square, neither turned nor coloured.

    Args:
        path: of the file.
        size: pixels of a side.
        view: the part.

    Returns:
        (3, size, size) of uint8. None for images that are too large, that libvips does not know or has at several
        levels of detail, or whose pixels are not 8 bits of grey or red, green and blue.

    Raises:
        pyvips.Error: the file cannot be decoded.
    """
    if size > LARGEST_SIDE:
        return None
    source = path.read() if isinstance(path, StoredImage) else path
    wanted = size / view.width, size / view.height
    reducible = 2 * SHRINKS[-1]
    pixels = decode_jpeg(source, reducible * wanted[0], reducible * wanted[1], MOST_PIXELS)
    if pixels is None:
        pixels = _decode(source, *wanted)
    return None if pixels is None else _scaled(view.cut(pixels.permute(2, 0, 1)), size)


def _scaled(pixels: Tensor, size: int) -> Tensor:
    """(3, height, width) of uint8 to (3, size, size): bicubic, over as many pixels as an output pixel covers."""
    if pixels.shape[1:] == (size, size):
        return pixels
    return F.interpolate(pixels[None], (size, size), mode="bicubic", antialias=True, align_corners=False)[0]


def _decode(source: Path | bytes, width: float, height: float) -> Tensor | None:
    """The image that ``_open`` opens, (height, width, 3) of uint8."""
    image = _open(source, width, height)
    if image is None:
        return None
    content = load_vips().Region.new(image).fetch(0, 0, image.width, image.height)
    return torch.from_numpy(np.frombuffer(content, np.uint8)).view(image.height, image.width, 3)


def _open(source: Path | bytes, width: float, height: float) -> Any:
    """An upright image without transparency, as libvips's pipeline, of ``width`` by ``height`` pixels or more if the
    file has them. None if it is not ordinary."""
    vips = load_vips()
    load = _loader(source)
    try:
        image = load()
    except vips.Error:
        return None
    if image.format != "uchar" or image.interpretation not in ("srgb", "b-w") or _has_levels(image):
        return None
    orientation = _field(image, "orientation", 1)
    options: dict[str, Any] = {} if orientation == 1 else {"access": "random"}
    options |= _reduction(image, *((width, height) if orientation <= 4 else (height, width)))
    if options:
        image = load(**options)
    if image.width * image.height > MOST_PIXELS:
        return None
    if orientation != 1:
        image = image.autorot()
    image = on_white(image)
    image = image if image.interpretation == "srgb" else image.colourspace("srgb")
    return image if image.bands == 3 else None


def _has_levels(image: Any) -> bool:
    """Whether libvips may find the image in its file at several scales, of which it decodes the right one faster and
    better. Several images in a TIFF file may be a pyramid."""
    loader = _field(image, "vips-loader", "")
    return loader.startswith(DRAWINGS) or (loader.startswith("tiffload") and _field(image, "n-pages", 1) > 1)


def _reduction(image: Any, width: float, height: float) -> dict[str, Any]:
    """Options that scale a JPEG or WebP file down while it is decoded, to ``width`` by ``height`` pixels or more. JPEG
    files keep twice as many a side: they can only be averaged in blocks, whose steps would show."""
    loader, largest = _field(image, "vips-loader", ""), min(image.width / width, image.height / height)
    if loader.startswith("webpload") and largest > 1:
        return {"scale": 1 / largest}
    if loader.startswith("jpegload"):
        return next(({"shrink": shrink} for shrink in SHRINKS if 2 * shrink <= largest), {})
    return {}


def _field(image: Any, name: str, default: Any) -> Any:
    """A field of an image, or the default where it has none: which fields there are depends on the format."""
    return image.get(name) if image.get_typeof(name) else default


def _loader(source: Path | bytes) -> Callable[..., Any]:
    """Opens a file, or its content, each time it is called, with other options."""
    image, options = load_vips().Image, {"access": "sequential", "fail_on": "error"}
    if isinstance(source, bytes):
        return partial(image.new_from_buffer, source, "", **options)
    return partial(image.new_from_file, str(source), **options)
