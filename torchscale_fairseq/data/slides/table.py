"""The table of a folder of slides: which split a slide is in, and what is to be predicted of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.data.slides.files import find_file
from torchscale_fairseq.data.tables import read_rows

ALIASES = {"slide_id": "slide"}
"""Names of columns in tables that are written for Prov-GigaPath."""
SPLITS = {"val": "valid"}


@dataclass
class SlideRows:
    """The slides of a split, row by row."""

    path: Path
    files: list[Path] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """Where each row stands, for messages."""
    values: list[tuple[str, ...]] = field(default_factory=list)
    """The cells of the columns of labels."""


def read_slides(path: Path, split: str, columns: Sequence[str], problems: Problems) -> SlideRows:
    """The rows of a split. Slides are files in the table's folder.

    Args:
        path: of a CSV file with the columns slide, split and those of labels.
        split: such as "train".
        columns: of labels.
        problems: takes invalid rows.

    Raises:
        DataError: the file, a column or a slide is missing, a row is incomplete, or the split has no slide.
    """
    needed = f"it needs the columns slide, split and {' and '.join(columns)}"
    found, splits = SlideRows(path), set()
    seen: dict[str, int] = {}
    for number, row in read_rows(path, ("slide", "split", *columns), needed, ALIASES):
        own = _cell(row, "split")
        splits.add(SPLITS.get(own, own))
        if SPLITS.get(own, own) != split:
            continue
        with problems.kind("invalid rows"):
            where = f"{path}, line {number}"
            slide, values = _cell(row, "slide"), tuple(_cell(row, name) for name in columns)
            if not slide or not all(values):
                raise DataError(f"{where} is not complete; {needed}.")
            if slide in seen:
                raise DataError(f"{where} names {slide} again, which line {seen[slide]} does.")
            seen[slide] = number
            found.files.append(find_file(path.parent, slide))
            found.lines.append(where)
            found.values.append(values)
    if not found.files:
        raise DataError(f"{path} has no slide of the split {split}; its splits are {', '.join(sorted(splits))}.")
    return found


def _cell(row: dict[str, str], name: str) -> str:
    return (row[name] or "").strip()
