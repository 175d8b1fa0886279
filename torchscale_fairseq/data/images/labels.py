"""Images with labels: in shards, or in an index, a JSON object a line, as the released BEiT-3 reads ImageNet."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from torchscale_fairseq.data.images.index import Format, Line, read_index
from torchscale_fairseq.data.problems import DataError, Problems

FORMAT = Format(text=(), example='{"image_path": "train/n01440764/1.JPEG", "label": 0}')
LISTED = 20
"""Classes that a log names."""


def classes_of(labels: Iterable[int | str], where: Path) -> list[str]:
    """The classes that labels of a training split name: names, sorted; or the numbers from 0 to the largest.

    Args:
        labels: of the split's images.
        where: the split, for messages.

    Raises:
        DataError: there are fewer than two.
    """
    labels = set(labels)
    numbers = [label for label in labels if isinstance(label, int)]
    named = len(numbers) < len(labels)
    classes = sorted(map(str, labels)) if named else list(map(str, range(max(numbers, default=-1) + 1)))
    if len(classes) < 2:
        raise DataError(f"{where} has {len(classes)} label(s); it needs two or more.")
    return classes


def numbers_of(labels: Iterable[tuple[int | str, object]], classes: list[str]) -> list[int]:
    """The index of each label among the classes of the training.

    Args:
        labels: of images, each with its place for messages.
        classes: of the training.

    Raises:
        DataError: a label is not one of the training's.
    """
    known = {name: number for number, name in enumerate(classes)}
    numbers = []
    for label, where in labels:
        if str(label) not in known:
            raise DataError(f"{where} has the label {label}, which the training lacks.")
        numbers.append(known[str(label)])
    return numbers


def listed(classes: Sequence[str]) -> str:
    """Number and names of classes, for a log; of many the first."""
    more = len(classes) - LISTED
    return f"{len(classes)} classes: {', '.join(classes[:LISTED])}{f' and {more} more' if more > 0 else ''}"


def indexed_classes(index: Path) -> list[str]:
    """The classes of an index of a training split; see ``classes_of``.

    Raises:
        DataError: the index is missing, a line has no label, or there are fewer than two.
    """
    return classes_of((_label(line) for line in _lines(index)), index)


def read_indexed(index: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    """The images of a split, and the class of each as its index.

    Args:
        index: of the split.
        classes: of the training.

    Raises:
        DataError: the index is missing, or a label is not one of the training's.
    """
    lines = _lines(index)
    return [line.images[0] for line in lines], numbers_of(((_label(line), line.where) for line in lines), classes)


def _lines(index: Path) -> list[Line]:
    return read_index(index, FORMAT, Problems(skip=False))


def _label(line: Line) -> int | str:
    label = line.content.get("label")
    if not isinstance(label, int | str) or isinstance(label, bool):
        raise DataError(f"{line.where} has no label; it should be such as {FORMAT.example}.")
    return label
