"""From a slide in a scanner's format to tiles with tissue."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.data.slides.files import optional_package

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
OVERVIEW = 2048
"""Pixels of the longer side of the image in which tissue is looked for."""
LEVELS = 256
SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi", ".dcm")
"""Endings of the files in a folder that are read as slides: OpenSlide's formats. A file given by name may have any
ending."""


class Slide:
    """A slide, read at a resolution.

    Args:
        path: of the file, in any format of OpenSlide.
        tile_size: side of a tile in pixels of that resolution.
        mpp: micrometres per pixel; None: the slide's own.

    Raises:
        InputError: openslide is missing.
        DataError: the file is not a slide, or says nothing of its resolution.
    """

    def __init__(self, path: Path, tile_size: int, mpp: float | None):
        openslide = optional_package("openslide", "reading slides")
        try:
            self._slide = openslide.OpenSlide(str(path))
        except (openslide.OpenSlideError, OSError) as error:
            raise DataError(f"{path} is not a slide that can be read ({error}).") from None
        self.path, self.tile_size = path, tile_size
        own = self._slide.properties.get("openslide.mpp-x")
        if mpp is not None and own is None:
            raise DataError(f"{path} does not say how large its pixels are; leave --mpp out to read it as it is.")
        self.mpp = float(own) if mpp is None and own is not None else mpp
        self.downsample = 1.0 if mpp is None else mpp / float(own)
        """Pixels of the largest level per pixel of a tile."""
        if self.downsample < 1 - 1e-3:
            raise DataError(f"{path} has {own} micrometres per pixel, more than --mpp {mpp}.")
        self.level = self._slide.get_best_level_for_downsample(self.downsample * 1.01)

    def tissue(self) -> tuple[Pixels, float]:
        """A small mask, 1 where the colour is saturated as that of stained tissue, and the pixels of the largest level
        per pixel of the mask."""
        width, height = self._slide.dimensions
        image = self._slide.get_thumbnail((min(OVERVIEW, width), min(OVERVIEW, height))).convert("HSV")
        saturation = np.asarray(image)[..., 1]
        return (saturation > otsu(saturation)).astype(np.uint8), width / image.width

    def coords(self, min_tissue: float) -> Any:
        """The corners of tiles with tissue, (tiles, 2): x and y in pixels of the tiles' resolution, row by row.

        Args:
            min_tissue: the least share of a tile that is tissue.
        """
        mask, scale = self.tissue()
        width, height = (int(side / self.downsample) // self.tile_size for side in self._slide.dimensions)
        cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
        side = self.tile_size * self.downsample / scale
        sums = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        low = np.minimum((cells * side).astype(int), np.array(mask.shape[::-1]) - 1)
        high = np.minimum(np.maximum(((cells + 1) * side).astype(int), low + 1), mask.shape[::-1])
        (x0, y0), (x1, y1) = low.T, high.T
        inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
        return cells[inside >= min_tissue * (x1 - x0) * (y1 - y0)] * self.tile_size

    def tile(self, x: int, y: int) -> Any:
        """An RGB image of the tile with this corner."""
        within = self.downsample / self._slide.level_downsamples[self.level]
        size = max(1, round(self.tile_size * within))
        corner = round(x * self.downsample), round(y * self.downsample)
        region = self._slide.read_region(corner, self.level, (size, size)).convert("RGB")
        return region if size == self.tile_size else region.resize((self.tile_size, self.tile_size), 2)

    def close(self) -> None:
        """Close the file."""
        self._slide.close()


def otsu(values: Pixels) -> int:
    """The threshold that separates two groups of values best: the one of the largest variance between them.

    Otsu, "A threshold selection method from gray-level histograms" (IEEE SMC 1979), eq. 18.
    """
    shares = np.bincount(values.reshape(-1), minlength=LEVELS) / values.size
    weight, moment = shares.cumsum(), (shares * np.arange(LEVELS)).cumsum()
    between = np.zeros(LEVELS)
    both = (weight > 0) & (weight < 1)
    between[both] = (moment[-1] * weight[both] - moment[both]) ** 2 / (weight[both] * (1 - weight[both]))
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return int(best.mean())


def slides_in(paths: list[Path]) -> Iterator[Path]:
    """The paths, and the slides in folders among them, known by their suffixes.

    Raises:
        InputError: a path does not exist, or a folder has no slide.
    """
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; name slides, or folders of slides.")
        if not path.is_dir():
            yield path
            continue
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
        if not found:
            raise InputError(f"{path} has no slide, that is no file whose name ends with {', '.join(SUFFIXES)}.")
        yield from found
