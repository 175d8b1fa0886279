"""Slides as bags of made-up features, in which a lesion's place decides the class."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

VALUES = 6
TILE = 256


def make_slides(folder: Path, formats: Sequence[str] = (".npz",), side: int = 6, **splits: int) -> Path:
    """So many slides in each split, of ``side`` x ``side`` tiles or a few less, with slides.csv.

    All tiles have noise as features, but for one lesion in each slide. Its class is "upper" or "lower", the half in
    which the lesion lies; features alone do not tell.
    """
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(1), []
    for split, count in splits.items():
        for number in range(count):
            name = f"{split[0]}{number}"
            grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
            cells = rng.permutation(grid)[: side * side - rng.integers(0, 4)]
            features = rng.normal(size=(len(cells), VALUES)).astype(np.float32) / 4
            lower = number % 2
            halves = np.flatnonzero((cells[:, 1] >= side // 2) == lower)
            features[rng.choice(halves)] += 2
            write_bag(folder / f"{name}{formats[number % len(formats)]}", features, TILE * cells)
            row = {"slide": name, "split": split, "label": ("upper", "lower")[lower], "low": lower}
            rows.append({**row, "odd": number // 2 % 2, "time": 1 + number, "event": int(number % 3 > 0)})
    with (folder / "slides.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def write_bag(path: Path, features: np.ndarray, coords: np.ndarray) -> None:
    """In the format of the file's ending."""
    if path.suffix == ".npz":
        np.savez(path, features=features, coords=coords)
    elif path.suffix == ".pt":
        torch.save({"features": torch.from_numpy(features), "coords": torch.from_numpy(coords)}, path)
    elif path.suffix == ".h5":
        import h5py

        with h5py.File(path, "w") as file:
            file["features"], file["coords"] = features[None], coords
    else:
        import zarr

        group = zarr.open_group(path, mode="w")
        for name, value in (("features", features), ("coords", coords)):
            group.create_array(name, shape=value.shape, dtype=value.dtype)[...] = value
