"""Files that have a JSON value on each line, next to the images that they name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torchscale_fairseq.data.problems import DataError, Problems

T = TypeVar("T")


def read_lines(path: Path, example: str, problems: Problems, convert: Callable[[Any, str], T]) -> list[T]:
    """The lines of a file; empty ones are left out.

    Args:
        path: of the file.
        example: a line, for messages.
        problems: takes invalid lines.
        convert: from the value of a line, and the file and number of the line, to an item; raises DataError.

    Raises:
        DataError: the file cannot be read, or a line is not valid.
    """
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; its lines are such as {example}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}; convert it.") from None
    items = []
    for number, text in enumerate(texts, 1):
        if text.strip():
            with problems.kind("invalid lines"):
                where = f"{path}, line {number}"
                items.append(convert(_json(text, where, example), where))
    return items


def _json(text: str, where: str, example: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}); it should be such as {example}.") from None
