"""Images with texts and labels: a JSON object a line, as the released BEiT-3 reads them, or with plain text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torchscale_fairseq.data.images.lines import read_lines
from torchscale_fairseq.data.problems import DataError, Problems

IMAGES = ("image_path", "image")
"""Names of the first image's path."""
SECOND_IMAGES = ("image2_path", "image2")


@dataclass(frozen=True)
class Line:
    """A line of an index."""

    images: tuple[Path, ...]
    text: str | list[int] | None
    """Text, or the numbers of its pieces."""
    content: Mapping[str, Any]
    """The whole line."""
    where: str
    """The file and the number of the line, for messages."""


@dataclass(frozen=True)
class Format:
    """The fields of an index.

    Args:
        text: names of the text, of which a line has one; empty for images alone.
        example: a line, for messages.
        two_images: whether a line has two images.
        text_is_needed: whether each line has a text.
    """

    text: Sequence[str]
    example: str
    two_images: bool = False
    text_is_needed: bool = True


def read_index(path: Path, expected: Format, problems: Problems) -> list[Line]:
    """The lines of an index; images are named relative to its folder.

    Args:
        path: of the file.
        expected: the fields of a line.
        problems: takes invalid lines.

    Raises:
        DataError: the file or an image of it is missing, or a line lacks a field.
    """
    return read_lines(path, expected.example, problems, partial(line_of, path.parent, expected))


def line_of(folder: Path, expected: Format, content: Any, where: str) -> Line:
    """A line of an index.

    Args:
        folder: of the index.
        expected: the fields of a line.
        content: the value of the line.
        where: the file and the number of the line.

    Raises:
        DataError: the line lacks a field, or an image does not exist.
    """
    if not isinstance(content, dict):
        raise DataError(f"{where} is no JSON object; it should be such as {expected.example}.")
    fields = [IMAGES, SECOND_IMAGES] if expected.two_images else [IMAGES]
    images = tuple(folder / _field(content, names, where, expected) for names in fields)
    for image in images:
        if not image.is_file():
            raise DataError(f"{where} names {image}, which does not exist.")
    return Line(images, _text(content, where, expected), content, where)


def _field(content: Mapping[str, Any], names: Sequence[str], where: str, expected: Format) -> str:
    value = next((content[name] for name in names if name in content), None)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where} has no {names[0]}; it should be such as {expected.example}.")
    return value


def _text(content: Mapping[str, Any], where: str, expected: Format) -> str | list[int] | None:
    value = next((content[name] for name in expected.text if content.get(name)), None)
    if value is None and (not expected.text or not expected.text_is_needed):
        return None
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, list) and all(isinstance(number, int) for number in value):
        return value
    raise DataError(f"{where} has no {expected.text[0]}; it should be such as {expected.example}.")
