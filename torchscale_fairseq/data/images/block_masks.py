"""Masks of patches in blocks: BEiT, arXiv:2106.08254, algorithm 1."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FLATTEST = 0.3
"""Smallest ratio of a block's rows to its columns; the largest is its inverse."""


@dataclass(frozen=True)
class BlockMasks:
    """Draws masks of a square of patches. Blocks are added until more than the ratio of all patches is masked.

    A block's size is drawn between ``smallest`` and the number of patches still to mask, and its aspect between 0.3 and
    1 / 0.3. A draw whose whole numbers of rows and columns break these limits, or do not fit the square, is repeated.

    Args:
        side: of the square, in patches.
        ratio: share of the patches to mask, above 0 and below 1.
        smallest: patches of a block, at most ``ratio * side ** 2``.
    """

    side: int
    ratio: float
    smallest: int

    def __call__(self, rng: np.random.Generator) -> NDArray[np.bool_]:
        """A mask (side ** 2,), row by row, True for patches that are hidden."""
        mask = np.zeros((self.side, self.side), dtype=bool)
        wanted = self.ratio * mask.size
        while mask.sum() <= wanted:
            rows, columns = self.block(rng, wanted - mask.sum())
            top, left = rng.integers(self.side - rows + 1), rng.integers(self.side - columns + 1)
            mask[top : top + rows, left : left + columns] = True
        return mask.ravel()

    def block(self, rng: np.random.Generator, missing: float) -> tuple[int, int]:
        """Rows and columns of a block, when ``missing`` patches are still to be masked."""
        while True:
            size = rng.uniform(self.smallest, max(self.smallest, missing))
            aspect = rng.uniform(FLATTEST, 1 / FLATTEST)
            rows, columns = round(np.sqrt(size * aspect)), round(np.sqrt(size / aspect))
            if self._fits(rows, columns):
                return rows, columns

    def _fits(self, rows: int, columns: int) -> bool:
        large_enough = rows * columns >= self.smallest and max(rows, columns) <= self.side
        return large_enough and FLATTEST <= rows / columns <= 1 / FLATTEST
