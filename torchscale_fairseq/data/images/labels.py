"""Images with labels in an index, a JSON object a line, as the released BEiT-3 reads ImageNet."""

from pathlib import Path

from torchscale_fairseq.data.images.index import Format, Line, read_index
from torchscale_fairseq.data.problems import DataError, Problems

FORMAT = Format(text=(), example='{"image_path": "train/n01440764/1.JPEG", "label": 0}')


def indexed_classes(index: Path) -> list[str]:
    """The labels of a training split: names, sorted; or the numbers from 0 to the largest.

    Raises:
        DataError: the index is missing, a line has no label, or there are fewer than two.
    """
    labels = {_label(line) for line in _lines(index)}
    numbers = [label for label in labels if isinstance(label, int)]
    named = len(numbers) < len(labels)
    classes = sorted(map(str, labels)) if named else list(map(str, range(max(numbers, default=-1) + 1)))
    if len(classes) < 2:
        raise DataError(f"{index} has {len(classes)} label(s); it needs two or more.")
    return classes


def read_indexed(index: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    """The images of a split, and the class of each as its index.

    Args:
        index: of the split.
        classes: of the training.

    Raises:
        DataError: the index is missing, or a label is not one of the training's.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    images, labels = [], []
    for line in _lines(index):
        name = str(_label(line))
        if name not in numbers:
            raise DataError(f"{line.where} has the label {name}, which the training lacks.")
        images.append(line.images[0])
        labels.append(numbers[name])
    return images, labels


def _lines(index: Path) -> list[Line]:
    return read_index(index, FORMAT, Problems(skip=False))


def _label(line: Line) -> int | str:
    label = line.content.get("label")
    if not isinstance(label, int | str) or isinstance(label, bool):
        raise DataError(f"{line.where} has no label; it should be such as {FORMAT.example}.")
    return label
