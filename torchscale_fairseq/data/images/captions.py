"""Captions of images: a JSON object a line."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torchscale_fairseq.data.images.lines import read_lines
from torchscale_fairseq.data.problems import DataError, Problems

EXAMPLE = '{"image": "images/1.png", "caption": "a red circle"}'


@dataclass(frozen=True)
class Captioned:
    """An image and what is said of it."""

    image: Path
    caption: str


def read_captions(path: Path, problems: Problems | None = None) -> list[Captioned]:
    """The lines of a captions file; images are named relative to it.

    Args:
        path: of the file.
        problems: takes invalid lines; None raises at the first.

    Raises:
        DataError: the file or an image of it is missing, or a line is not such an object.
    """
    return read_lines(path, EXAMPLE, problems or Problems(skip=False), partial(_captioned, path.parent))


def _captioned(folder: Path, content: Any, where: str) -> Captioned:
    for name in ("image", "caption"):
        value = content.get(name) if isinstance(content, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where} has no {name}; it should be such as {EXAMPLE}.")
    image = folder / content["image"]
    if not image.is_file():
        raise DataError(f"{where} names {image}, which does not exist.")
    return Captioned(image, content["caption"].strip())
