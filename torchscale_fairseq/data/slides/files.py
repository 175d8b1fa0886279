"""Files of a slide's tiles: ``features`` (tiles, values) and ``coords`` (tiles, 2), in one of four formats."""

import contextlib
import importlib
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.problems import DataError

NEEDED = "a slide's file needs features (tiles, values) and coords (tiles, 2)"


class Bag(NamedTuple):
    """The tiles of a slide."""

    features: Tensor
    """(tiles, values), float32."""
    coords: Tensor
    """(tiles, 2), int64, pixels of each tile's corner, x and y, at the resolution of the tiles."""


def optional_package(name: str, why: str) -> Any:
    """A package that comes with the extra ``slides``.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{why} needs the package {error.name}; install it: pip install 'torchscale-fairseq[slides]'."
        ) from None


@contextlib.contextmanager
def _h5(path: Path) -> Iterator[Any]:
    with optional_package("h5py", "a slide in .h5").File(path, "r") as file:
        yield file


@contextlib.contextmanager
def _npz(path: Path) -> Iterator[Any]:
    with np.load(path, allow_pickle=False) as file:
        yield file


@contextlib.contextmanager
def _pt(path: Path) -> Iterator[Any]:
    yield torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


@contextlib.contextmanager
def _zarr(path: Path) -> Iterator[Any]:
    yield optional_package("zarr", "a slide in .zarr").open_group(path, mode="r")


FORMATS: dict[str, Callable[[Path], Any]] = {".h5": _h5, ".npz": _npz, ".pt": _pt, ".zarr": _zarr}
"""By the ending of a file's name."""


def find_file(folder: Path, slide: str) -> Path:
    """The file of a slide, which is named with or without an ending.

    Raises:
        DataError: there is none, or several.
    """
    names = [slide] if slide.endswith(tuple(FORMATS)) else [f"{slide}{ending}" for ending in FORMATS]
    found = [folder / name for name in names if (folder / name).exists()]
    if len(found) != 1:
        wanted = f"a file {slide} with one of the endings {', '.join(FORMATS)}"
        has = f"several: {', '.join(path.name for path in found)}" if found else "none"
        raise DataError(f"{folder} should have {wanted}, but it has {has}.")
    return found[0]


def read_size(path: Path) -> tuple[int, int]:
    """Tiles of a slide, and values in a tile's features, without reading the features where the format allows that.

    Raises:
        DataError: the file cannot be used.
    """
    if path.suffix == ".npz":
        features, coords = _npz_shapes(path)
    else:
        with _opened(path) as file:
            features, coords = (tuple(file[name].shape) for name in ("features", "coords"))
    features, coords = _bare(features), _bare(coords)
    if len(features) != 2 or len(coords) != 2 or coords[1] != 2 or features[0] != coords[0]:
        raise DataError(f"{path} has features of shape {features} and coords of shape {coords}; {NEEDED}.")
    if not features[0]:
        raise DataError(f"{path} has no tile.")
    return features[0], features[1]


def read_bag(path: Path) -> Bag:
    """The tiles of a slide.

    Raises:
        DataError: the file cannot be used.
    """
    read_size(path)
    with _opened(path) as file:
        features, coords = (torch.as_tensor(_array(file[name])) for name in ("features", "coords"))
    features = features.reshape(features.shape[-2:]).float()
    if not bool(features.isfinite().all()):
        raise DataError(f"{path} has features that are not finite.")
    return Bag(features, coords.reshape(coords.shape[-2:]).double().floor().long())


def _array(stored: Any) -> Any:
    return stored if torch.is_tensor(stored) else np.asarray(stored[...])


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without a leading 1, which some programs write."""
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with FORMATS[path.suffix](path) as file:
            if not hasattr(file, "__getitem__") or torch.is_tensor(file):
                raise DataError(f"{path} holds a bare {type(file).__name__}; {NEEDED}.")
            missing = [name for name in ("features", "coords") if name not in file]
            if missing:
                raise DataError(f"{path} has no {missing[0]}, but {', '.join(sorted(map(str, file)))}; {NEEDED}.")
            yield file
    except InputError:
        raise
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0] if str(error) else error!r}") from None


def _npz_shapes(path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """From the headers of the archive's members."""
    with _opened(path):  # which checks the names
        pass
    with zipfile.ZipFile(path) as archive:
        return _npy_shape(archive, "features"), _npy_shape(archive, "coords")


def _npy_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape: tuple[int, ...] = read(member)[0]
        return shape
