"""Images in a folder per class, or without classes."""

import os
from pathlib import Path

from torchscale_fairseq.data.problems import DataError


def read_classes(folder: Path) -> list[str]:
    """The names of the folders of a training split, sorted.

    Raises:
        DataError: the folder is missing or has fewer than two classes.
    """
    classes = _subfolders(folder)
    if len(classes) < 2:
        raise DataError(
            f"{folder} has {len(classes)} folder(s); it should have one for each of two or more classes, or shards "
            "(*.tar without compression, *.parquet), or, for --criterion survival, a table that --labels names."
        )
    return classes


def read_folders(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    """The images of a split, sorted by class and name, and the class of each as its index.

    Args:
        folder: with a folder for each class, or for some of them.
        classes: of the training.

    Raises:
        DataError: the folder is missing, has a class that is not one of the training's, or a class without image.
    """
    images: list[Path] = []
    labels: list[int] = []
    for name in _subfolders(folder):
        if name not in classes:
            raise DataError(
                f"{folder} has the class {name}, which the training lacks; its classes are {', '.join(classes)}."
            )
        found = sorted(path for path in (folder / name).iterdir() if path.is_file() and path.name[0] != ".")
        if not found:
            raise DataError(f"{folder / name} has no image; put some there, or remove the folder.")
        images += found
        labels += [classes.index(name)] * len(found)
    if not images:
        raise DataError(f"{folder} has no folder; it should have one for each class.")
    return images, labels


def read_unlabelled(folder: Path) -> list[Path]:
    """All files of a folder and of those in it, sorted; names that begin with a dot are left out.

    Args:
        folder: of a split.

    Raises:
        DataError: the folder is missing or has no file.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; it should have images, or {folder}.jsonl should name them.")
    files = [Path(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names]
    images = sorted(file for file in files if not any(part[0] == "." for part in file.relative_to(folder).parts))
    if not images:
        raise DataError(f"{folder} has no image; put some there.")
    return images


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(
            f"{folder} does not exist; it should have a folder of images for each class or shards (*.tar, *.parquet), "
            f"or {folder}.jsonl should name images and labels."
        )
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
