"""The order of samples: a pure function of seed, epoch and place, the same for any number of processes and workers.

Each source is read in passes; a pass takes every sample once, its parts shuffled. An epoch is cut into windows of
about ``read_ahead`` samples, to which every source gives in proportion to its weight, and each window is shuffled.
Without weights, an epoch is one pass over every source.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class SampleOrder:
    """The order of one split.

    Args:
        samples: for each source, how many samples each of its parts has; none is empty.
        weights: of the sources; None for one pass over each per epoch.
        read_ahead: samples that are shuffled together; below 2 for the order on disk within parts.
        seed: of the shuffling; None for the order on disk.
    """

    def __init__(
        self,
        samples: Sequence[NDArray[np.int64]],
        weights: Sequence[float] | None,
        *,
        read_ahead: int,
        seed: int | None,
    ):
        self._samples = [np.asarray(counts, dtype=np.int64) for counts in samples]
        totals = np.array([counts.sum() for counts in self._samples])
        self._first_part = np.concatenate([[0], np.cumsum([len(counts) for counts in self._samples])])
        self.quotas = totals if weights is None else _apportioned(int(totals.sum()), weights)
        """Samples of an epoch from each source."""
        self._totals = totals
        self._seed = seed
        self._shuffles = seed is not None and read_ahead > 1
        self._windows = max(1, -(-len(self) // max(1, read_ahead)))
        self._window = lru_cache(maxsize=2)(self._make_window)
        self._pass = lru_cache(maxsize=2 * len(self._samples))(self._make_pass)

    def __len__(self) -> int:
        """Samples of an epoch."""
        return int(self.quotas.sum())

    def window_of(self, place: int) -> int:
        """The window in which a place of the epoch lies."""
        low, high = 0, self._windows - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.start_of(middle) <= place:
                low = middle
            else:
                high = middle - 1
        return low

    def start_of(self, window: int) -> int:
        """The first place of a window."""
        return sum(int(quota) * window // self._windows for quota in self.quotas)

    def window(self, epoch: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """A window's samples, in order.

        Args:
            epoch: counted from 0.
            number: of the window.

        Returns:
            The part of each sample (counted through all sources), its number within the part, and how often its
            source was read before.
        """
        return self._window(epoch, number)

    def _make_window(self, epoch: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        pieces = []
        for source, quota in enumerate(self.quotas.tolist()):
            start, stop = (epoch * quota + quota * edge // self._windows for edge in (number, number + 1))
            total = int(self._totals[source])
            while start < stop:
                passes, place = divmod(start, total)
                end = min(stop - start + place, total)
                parts, within = self._stretch(source, passes, place, end)
                pieces.append((parts + self._first_part[source], within, np.full(len(parts), passes)))
                start += end - place
        parts, within, passes = (np.concatenate(column) for column in zip(*pieces, strict=True))
        if self._shuffles:
            mixed = np.random.default_rng([self._seed or 0, 1, epoch, number]).permutation(len(parts))
            parts, within, passes = parts[mixed], within[mixed], passes[mixed]
        return parts, within, passes

    def _stretch(self, source: int, passes: int, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Samples ``start`` to ``stop`` of a pass: part within the source, and number within the part."""
        parts, ends = self._pass(source, passes)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        chosen = parts[first : last + 1]
        counts = self._samples[source][chosen]
        row = np.repeat(np.arange(len(chosen)), counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        begin = start - (int(ends[first]) - int(counts[0]))
        kept = slice(begin, begin + stop - start)
        return chosen[row[kept]], within[kept]

    def _make_pass(self, source: int, passes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The parts in the order of a pass, and where each ends."""
        counts = self._samples[source]
        parts: NDArray[np.int64] = np.arange(len(counts))
        if self._seed is not None:
            np.random.default_rng([self._seed, 0, source, passes]).shuffle(parts)
        return parts, np.cumsum(counts[parts])


def _apportioned(total: int, weights: Sequence[float]) -> NDArray[np.int64]:
    """Whole shares of a total in proportion to the weights; the largest remainders round up."""
    shares = total * np.asarray(weights) / sum(weights)
    whole = np.floor(shares).astype(np.int64)
    largest = np.argsort(whole - shares, kind="stable")[: total - int(whole.sum())]
    whole[largest] += 1
    return whole
