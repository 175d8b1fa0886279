"""Image files of many kinds, and the pixels that a reader should find in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 32
Pixels = Any
"""(SIDE, SIDE, 3), or (SIDE, SIDE) where an image is grey, of uint8."""
Kind = Callable[[Path], Pixels]
"""Writes a file, and returns the pixels expected of it."""

RGB = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREY, ALPHA = RGB[..., 0], RGB[..., 1]
SMOOTH = np.asarray(Image.fromarray(RGB[:3, :3]).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
"""An image whose eight orientations all differ, which JPEG hardly changes."""
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera stores what it says has an orientation: the inverse of how it is to be turned (EXIF, tag 0x0112)."""


def on_white(colours: Pixels, alpha: Pixels) -> Pixels:
    share = alpha[..., None] / 255.0
    return np.rint(colours * share + 255 * (1 - share))


def grey_in_colours(grey: Pixels) -> Pixels:
    return np.repeat(grey[..., None], 3, -1)


def plain(array: Pixels, mode: str | None = None, **options: Any) -> Kind:
    """What Pillow writes of an array."""

    def write(path: Path) -> Pixels:
        Image.fromarray(array, mode).save(path, **options)
        return array if array.ndim == 3 else grey_in_colours(array)

    return write


def transparent(path: Path) -> Pixels:
    Image.fromarray(np.dstack([RGB, ALPHA])).save(path)
    return on_white(RGB, ALPHA)


def transparent_grey(path: Path) -> Pixels:
    Image.fromarray(np.dstack([GREY, ALPHA]), "LA").save(path)
    return on_white(grey_in_colours(GREY), ALPHA)


def hidden_corner(path: Path) -> Pixels:
    """A colour below full transparency, as drawing programs leave it."""
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[: SIDE // 2, : SIDE // 2] = 0
    Image.fromarray(np.dstack([RGB, alpha])).save(path)
    return on_white(RGB, alpha)


def one_bit(path: Path) -> Pixels:
    Image.fromarray(GREY > 127).save(path)
    return grey_in_colours((GREY > 127) * 255)


def deep_grey(path: Path) -> Pixels:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(path)
    return grey_in_colours(GREY)


def deep(bands: Pixels, expected: Pixels) -> Kind:
    """16 bits a channel, which Pillow does not write."""

    def write(path: Path) -> Pixels:
        import pyvips

        kind = "grey16" if bands.shape[-1] < 3 else "rgb16"
        pixels = pyvips.Image.new_from_array(bands.astype(np.uint16) * 257)
        pixels.copy(interpretation=kind).write_to_file(str(path))
        return expected

    return write


def palette(path: Path) -> Pixels:
    image = Image.fromarray(RGB).quantize(16)
    image.save(path)
    return np.asarray(image.convert("RGB"))


def transparent_palette(path: Path) -> Pixels:
    image = Image.fromarray(RGB).quantize(16)
    image.save(path, transparency=3)
    return np.where((np.asarray(image) == 3)[..., None], 255, np.asarray(image.convert("RGB")))


def inks(path: Path) -> Pixels:
    """White, and as dark as cyan, magenta, yellow and black print together."""
    ink = np.zeros((SIDE, SIDE, 4), np.uint8)
    ink[: SIDE // 2] = 255
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(ink, "CMYK").save(path, **options)
    return np.where(ink[..., :3] > 0, 0, 255)


def animated(path: Path) -> Pixels:
    """The first of two pictures counts."""
    first, second = (Image.fromarray(array).quantize(16) for array in (RGB, 255 - RGB))
    if path.suffix == ".webp":
        first, second = first.convert("RGB"), second.convert("RGB")
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=[second], **options)
    return np.asarray(first.convert("RGB"))


def oriented(orientation: int) -> Kind:
    def write(path: Path) -> Pixels:
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored, turn = Image.fromarray(SMOOTH), STORED[orientation]
        stored = stored if turn is None else stored.transpose(turn)
        options: dict[str, Any] = {"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}
        stored.save(path, exif=exif, **options)
        return SMOOTH

    return write


KINDS: dict[str, Kind] = {
    "1-bit.png": one_bit,
    "grey.png": plain(GREY),
    "grey-16-bit.png": deep_grey,
    "grey-16-bit.tif": deep_grey,
    "grey-alpha.png": transparent_grey,
    "grey-alpha-16-bit.png": deep(np.dstack([GREY, ALPHA]), on_white(grey_in_colours(GREY), ALPHA)),
    "rgb.png": plain(RGB),
    "rgb.bmp": plain(RGB),
    "rgb.ppm": plain(RGB),
    "rgb.tif": plain(RGB),
    "rgb-16-bit.png": deep(RGB, RGB),
    "rgb-alpha.png": transparent,
    "rgb-alpha-16-bit.png": deep(np.dstack([RGB, ALPHA]), on_white(RGB, ALPHA)),
    "hidden-corner.png": hidden_corner,
    "palette.png": palette,
    "palette.gif": palette,
    "palette.bmp": palette,
    "palette-transparent.png": transparent_palette,
    "cmyk.jpg": inks,
    "cmyk.tif": inks,
    "animated.gif": animated,
    "animated.png": animated,
    "animated.webp": animated,
    **{f"orientation-{n}.{suffix}": oriented(n) for n in STORED for suffix in ("jpg", "png")},
}


def largest_error(name: str) -> int:
    """How far a reader may be off: by a rounding where transparency is mixed, by what JPEG loses, and by what the
    darkest print still reflects."""
    if name.startswith("cmyk"):
        return 60
    return 4 if name.endswith(".jpg") else 1 if "alpha" in name else 0
