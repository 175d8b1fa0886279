"""Captions of images: a JSON object a line."""

import json
from dataclasses import dataclass
from pathlib import Path

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
    problems = problems or Problems(skip=False)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; its lines are such as {EXAMPLE}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}; convert it.") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            with problems.kind("invalid lines"):
                pairs.append(_read(line, f"{path}, line {number}", path.parent))
    return pairs


def _read(line: str, where: str, folder: Path) -> Captioned:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}); it should be such as {EXAMPLE}.") from None
    for name in ("image", "caption"):
        value = content.get(name) if isinstance(content, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where} has no {name}; it should be such as {EXAMPLE}.")
    image = folder / content["image"]
    if not image.is_file():
        raise DataError(f"{where} names {image}, which does not exist.")
    return Captioned(image, content["caption"].strip())
