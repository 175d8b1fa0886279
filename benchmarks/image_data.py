"""Data for ``--task image_classification`` without photographs: random textures as JPEG files, listed in an index."""

import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

OCTAVES = 6
"""Scales of a texture; each is half as fine as the one before and, as in photographs, twice as strong."""


def write_images(folder: Path, contents: Iterable[bytes], count: int, classes: int) -> None:
    """Write a training split.

    Args:
        folder: to make.
        contents: of the JPEG files.
        count: images of an epoch; the index lists each file as often as they need.
        classes: of the labels, which are numbers.
    """
    (folder / "images").mkdir(parents=True)
    names = []
    for number, content in enumerate(contents):
        names.append(f"images/{number}.jpg")
        (folder / names[-1]).write_bytes(content)
    lines = (
        json.dumps({"image_path": names[line % len(names)], "label": line % classes})
        for line in range(max(count, classes))
    )
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")


def texture(seed: int, width: int, height: int, *, finest: int = 0, quality: int = 96) -> bytes:
    """A random texture as a JPEG file.

    Args:
        seed: of the pixels.
        width, height: in pixels.
        finest: octaves that are left out, from the finest on; smooth images make small files.
        quality: of JPEG.
    """
    drawn = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0)
    for octave in range(finest, OCTAVES):
        size = (max(1, height >> octave), max(1, width >> octave), 3)
        noise = Image.fromarray(drawn.integers(0, 256, size, dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        pixels += (np.asarray(noise) - 127.5) * 2.0 ** (octave + 1 - OCTAVES)
    content = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(content, "jpeg", quality=quality)
    return content.getvalue()
