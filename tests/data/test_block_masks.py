"""Masks in blocks have the properties of BEiT's algorithm 1."""

import numpy as np
import pytest

from torchscale_fairseq.data.images.block_masks import BlockMasks

SETTINGS = [(14, 0.4, 16), (8, 0.4, 16), (16, 0.75, 16), (4, 0.4, 4), (2, 0.5, 1), (3, 0.8, 7)]


@pytest.mark.parametrize(("side", "ratio", "smallest"), SETTINGS)
def test_blocks_keep_their_limits(side: int, ratio: float, smallest: int) -> None:
    masks, rng = BlockMasks(side, ratio, smallest), np.random.default_rng(0)
    for missing in (ratio * side**2, float(smallest), 0.0):
        for _ in range(200):
            rows, columns = masks.block(rng, missing)
            assert rows * columns >= smallest and max(rows, columns) <= side and 0.3 <= rows / columns <= 1 / 0.3


@pytest.mark.parametrize(("side", "ratio", "smallest"), SETTINGS)
def test_masking_ends_as_soon_as_the_ratio_is_exceeded(side: int, ratio: float, smallest: int) -> None:
    """The last block adds at most its own patches, whose number is drawn up to what is missing and then rounded."""
    rng, wanted = np.random.default_rng(0), ratio * side**2
    counts = [BlockMasks(side, ratio, smallest)(rng).sum() for _ in range(200)]
    largest = max(smallest, wanted)
    assert wanted < min(counts) and max(counts) <= min(side**2, wanted + largest + 1.2 * largest**0.5 + 0.25)


def test_the_share_of_an_ordinary_image_is_near_the_papers() -> None:
    """About 40 % of 14 x 14 patches are hidden, corners too, but more often those in the middle."""
    rng = np.random.default_rng(0)
    shares = np.mean([BlockMasks(14, 0.4, 16)(rng) for _ in range(500)], 0)
    assert 0.4 < shares.mean() < 0.47 and shares.min() > 0 and shares.argmin() in (0, 13, 182, 195)


def test_a_single_block_is_a_rectangle() -> None:
    """Fewer patches are wanted than the smallest block has."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = BlockMasks(14, 10 / 196, 16)(rng).reshape(14, 14)
        assert mask.any(1).sum() * mask.any(0).sum() == mask.sum() >= 16
