"""Images of any size as patches, read from their files a row of patches at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchscale_fairseq.data.images.reading import errors_named, load_vips, open_image
from torchscale_fairseq.data.images.stored import ImageFile
from torchscale_fairseq.data.images.views import View


@dataclass(frozen=True)
class ImagePatches:
    """The patches of an image, which is scaled to a square, or some of them. Each iteration reads the file anew, from
    top to bottom; neither the file's image nor the scaled one is ever whole in memory.

    ``open_image`` says how files of all kinds are read.

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
        """Positions counted from ``start``, (patches,), and patches (patches, 3, patch_size, patch_size) of uint8; a
        row of the file's image at a time.

        Raises:
            DataError: the file is missing or is not an image that can be read.
            ModuleNotFoundError: pyvips is not installed.
        """
        positions = self._positions()
        wanted = (positions >= self.start) & (positions < self._stop)
        columns = np.flatnonzero(wanted.any(0))
        if not len(columns):
            return
        first, size = int(columns[0]), self.patch_size
        width = int(columns[-1]) + 1 - first
        with errors_named(self.path):
            region = load_vips().Region.new(self._open())
            for row in np.flatnonzero(wanted.any(1)):
                pixels = region.fetch(first * size, int(row) * size, width * size, size)
                patches = torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(size, width, size, 3))
                chosen = torch.from_numpy(wanted[row, first : first + width])
                places = torch.from_numpy(positions[row, first : first + width])[chosen] - self.start
                yield places, self._turned(patches.permute(1, 3, 0, 2)[chosen])

    def read(self) -> Tensor:
        """All at once, (patches, 3, patch_size, patch_size) of uint8, in order. Errors are those of iterating."""
        if self._stop - self.start == (self.img_size // self.patch_size) ** 2:
            return self._read_whole()
        result = torch.empty(self._stop - self.start, 3, self.patch_size, self.patch_size, dtype=torch.uint8)
        for positions, patches in self:
            result[positions] = patches
        return result

    def _read_whole(self) -> Tensor:
        """All patches, in one piece, which costs less than a row at a time."""
        size = self.img_size
        with errors_named(self.path):
            pixels = load_vips().Region.new(self._open()).fetch(0, 0, size, size)
        image = torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(size, size, 3)).permute(2, 0, 1)
        return as_patches(self._turned(image), self.patch_size)

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
        return np.ascontiguousarray(positions.T if self.view.transposed else positions)

    def _turned(self, pixels: Tensor) -> Tensor:
        """Pixels of the file's image, (..., height, width), as the view has them."""
        if self.view.transposed:
            pixels = pixels.transpose(-2, -1)
        reversed_axes = [-2] * self.view.rows_reversed + [-1] * self.view.columns_reversed
        return pixels.flip(reversed_axes) if reversed_axes else pixels

    def _open(self) -> Any:
        """The view before it is turned, as a pipeline that has computed nothing yet."""
        view = self.view
        width, height = (max(self.img_size, round(self.img_size / share)) for share in (view.width, view.height))
        image = open_image(self.path, width, height)
        left = min(round(view.left * width), width - self.img_size)
        top = min(round(view.top * height), height - self.img_size)
        image = image.crop(left, top, self.img_size, self.img_size)
        if self.view.has_other_colours:
            matrix, offset = self.view.colours()
            image = (image.recomb(matrix) + offset).rint().cast("uchar")
        return image


def as_patches(image: Tensor, size: int) -> Tensor:
    """(channels, height, width) to (patches, channels, size, size), row by row."""
    grid = image.unflatten(2, (-1, size)).unflatten(1, (-1, size))
    return grid.permute(1, 3, 0, 2, 4).flatten(0, 1).contiguous()
