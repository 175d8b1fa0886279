"""The order of an epoch: shuffled, or drawn so that groups come up equally often."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from torchscale_fairseq.data.drawn_images import DrawnImages


class DrawnOrder(DrawnImages):
    """An index is a place in the order of an epoch.

    Args:
        count: examples.
        shuffle: whether the order changes between epochs, as in training.
        groups: of each example, which all come up equally often, rare ones repeatedly; None for each example once.
        seed: of all that is drawn, with epoch and index.
    """

    def __init__(self, count: int, *, shuffle: bool, groups: Sequence[int] | None, seed: int):
        self.count, self.shuffle, self.groups, self.seed = count, shuffle, groups, seed
        self.set_epoch(1)

    def set_epoch(self, epoch: int) -> None:
        """Draw another order."""
        self.epoch = epoch
        self.order = self._drawn(np.random.default_rng((self.seed, epoch)))

    def _drawn(self, rng: np.random.Generator) -> Any:
        if not self.shuffle:
            return np.arange(self.count)
        if self.groups is None:
            return rng.permutation(self.count)
        return rng.permutation(drawn_evenly(np.asarray(self.groups), rng))

    def generator(self, index: int) -> np.random.Generator:
        """Seed of everything that is drawn for an index."""
        return np.random.default_rng((self.seed, self.epoch, index))

    def __len__(self) -> int:
        return self.count

    def ordered_indices(self) -> Any:
        """All of them."""
        return np.arange(len(self))


def drawn_evenly(groups: Any, rng: np.random.Generator) -> Any:
    """Draw ``len(groups)`` indices so that group counts differ by at most one. No index of a group is drawn again
    before all others of that group."""
    present = rng.permutation(np.unique(groups))
    shares = np.full(len(present), len(groups) // len(present))
    shares[: len(groups) % len(present)] += 1
    drawn = []
    for group, share in zip(present, shares, strict=True):
        members = np.flatnonzero(groups == group)
        rounds = -(-share // len(members))
        drawn.append(np.concatenate([rng.permutation(members) for _ in range(rounds)])[:share])
    return np.concatenate(drawn)
