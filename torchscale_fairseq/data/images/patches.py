"""Images of any size as patches; large ones are read from their files a row of patches at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchscale_fairseq.data.images.libvips import load_vips
from torchscale_fairseq.data.images.ordinary import read_ordinary
from torchscale_fairseq.data.images.reading import errors_named, open_image
from torchscale_fairseq.data.images.stored import ImageFile
from torchscale_fairseq.data.images.views import View


@dataclass(frozen=True)
class ImagePatches:
    """The patches of an image, which is scaled to a square, or some of them. Each iteration reads the file anew.

    ``read_ordinary`` says which images are decoded whole. Any other is read from top to bottom: neither the file's
    image nor the scaled one is ever whole in memory. ``open_image`` says how files of all kinds are read.

    Args:
        path: of the file, or of an image in a shard.
        img_size: pixels of the scaled image's side, a multiple of patch_size.
        patch_size: pixels of a patch's side.
        view: what is seen of the image, and how.
        start, stop: which patches, counted row by row from 0; by default all.
    """

    path: ImageFile
    img_size: int
    patch_size: int
    view: View = field(default_factory=View)
    start: int = 0
    stop: int | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions counted from ``start``, (patches,), and patches (patches, 3, patch_size, patch_size) of uint8: all
        of an ordinary image at once, a row of any other at a time.

        Raises:
            DataError: the file is missing or is not an image that can be read.
            ModuleNotFoundError: pyvips is not installed.
        """
        with errors_named(self.path):
            patches = self._ordinary()
            if patches is None:
                yield from self._rows()
            else:
                yield torch.arange(len(patches)), patches

    def read(self) -> Tensor:
        """All at once, (patches, 3, patch_size, patch_size) of uint8, in order. Errors are those of iterating."""
        with errors_named(self.path):
            result = self._ordinary()
            if result is None:
                result = torch.empty(self._stop - self.start, 3, self.patch_size, self.patch_size, dtype=torch.uint8)
                for positions, patches in self._rows():
                    result[positions] = patches
        return result

    def _ordinary(self) -> Tensor | None:
        """The patches of an ordinary image; None for any other."""
        image = read_ordinary(self.path, self.img_size, self.view)
        if image is None:
            return None
        patches = as_patches(self.view.turned(self.view.coloured(image)), self.patch_size)
        return patches[self.start : self._stop]

    def _rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions and patches, as ``__iter__`` gives them, a row of the file's image at a time."""
        positions = self._positions()
        wanted = (positions >= self.start) & (positions < self._stop)
        columns = np.flatnonzero(wanted.any(0))
        if not len(columns):
            return
        first, size = int(columns[0]), self.patch_size
        width = int(columns[-1]) + 1 - first
        region = load_vips().Region.new(self._open())
        for row in np.flatnonzero(wanted.any(1)):
            pixels = region.fetch(first * size, int(row) * size, width * size, size)
            patches = torch.from_numpy(np.frombuffer(pixels, np.uint8)).view(size, width, size, 3)
            chosen = torch.from_numpy(wanted[row, first : first + width])
            places = torch.from_numpy(positions[row, first : first + width])[chosen] - self.start
            yield places, self.view.turned(self.view.coloured(patches.permute(1, 3, 0, 2)[chosen]))

    @property
    def _stop(self) -> int:
        return (self.img_size // self.patch_size) ** 2 if self.stop is None else self.stop

    def _positions(self) -> Any:
        """(rows, columns) of the file's image: which patch of the view it is."""
        side = self.img_size // self.patch_size
        positions: Any = np.arange(side * side).reshape(side, side)
        if self.view.rows_reversed:
            positions = positions[::-1]
        if self.view.columns_reversed:
            positions = positions[:, ::-1]
        return (positions.T if self.view.transposed else positions).copy()  # torch takes no negative strides

    def _open(self) -> Any:
        """The view before it is turned and coloured, as a pipeline that has computed nothing yet."""
        view = self.view
        width, height = (max(self.img_size, round(self.img_size / share)) for share in (view.width, view.height))
        image = open_image(self.path, width, height)
        left = min(round(view.left * width), width - self.img_size)
        top = min(round(view.top * height), height - self.img_size)
        return image.crop(left, top, self.img_size, self.img_size)


def as_patches(image: Tensor, size: int) -> Tensor:
    """(channels, height, width) to (patches, channels, size, size), row by row."""
    grid = image.unflatten(2, (-1, size)).unflatten(1, (-1, size))
    return grid.permute(1, 3, 0, 2, 4).flatten(0, 1).contiguous()
