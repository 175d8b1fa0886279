"""A pass over a dataset as fairseq's trainer needs it: by epoch, by process, and from any position."""

from collections.abc import Iterator
from typing import Any

import torch
from fairseq.data.iterators import BufferedIterator, CountingIterator, EpochBatchIterating
from torch.utils.data import DataLoader, Dataset, Sampler

from torchscale_fairseq.data.text.pretraining_dataset import Batch, PretrainingDataset

Stretch = tuple[int, int]
"""The first position of a stretch of the epoch, and the one after its last."""


class PretrainingIterator(EpochBatchIterating):
    """Batches are consecutive stretches of an epoch's order, dealt to the processes in turn.

    The position is kept in samples, so that a run with another number of processes, or another batch size, can resume
    from it.

    Args:
        dataset: of one split.
        batch_size: samples.
        num_shards, shard_id: number of processes, and which is this one.
        epoch: counted from 1, as fairseq does.
        directories: number of data directories that take turns; the dataset is one of them, read once per round.
        update_freq: batches of an update; progress is counted from there where they do not divide.
        num_workers: processes that read; 0 for a thread of this one.
        buffer_size: batches that are kept ready.
        skip_remainder_batch: leave out the last batch of an epoch if it is not full.
    """

    def __init__(
        self,
        dataset: PretrainingDataset,
        *,
        batch_size: int,
        num_shards: int = 1,
        shard_id: int = 0,
        epoch: int = 1,
        directories: int = 1,
        update_freq: int = 1,
        num_workers: int = 0,
        buffer_size: int = 0,
        timeout: float = 0,
        skip_remainder_batch: bool = False,
    ):
        self.dataset, self.batch_size = dataset, batch_size
        self.num_shards, self.shard_id = num_shards, shard_id
        self.epoch = max(epoch, 1)
        self._directories, self._update_freq = directories, update_freq
        self._num_workers, self._buffer_size, self._timeout = num_workers, buffer_size, timeout
        step = batch_size * num_shards
        self._stop = len(dataset) // step * step if skip_remainder_batch else len(dataset)
        self._origin = self._started_at = 0
        """Samples and batches before the current iterator's first."""
        self._resumed = False
        self._iterator: CountingIterator | None = None

    @property
    def first_batch(self) -> Batch:
        """A batch to stand in for missing ones."""
        return self.dataset.batch(0, 0, min(self.batch_size, len(self.dataset)))

    def __len__(self) -> int:
        return self._started_at + -(-max(0, self._stop - self._origin) // (self.batch_size * self.num_shards))

    @property
    def next_epoch_idx(self) -> int:
        """The epoch that comes next."""
        return self.epoch + (self._iterator is not None and self.end_of_epoch())

    def next_epoch_itr(
        self, shuffle: bool = True, fix_batches_to_gpus: bool = False, set_dataset_epoch: bool = True
    ) -> CountingIterator:
        """The batches of this process in the next epoch, or what is left of this one; none of the arguments, which
        fairseq passes, changes the order."""
        if self._iterator is not None and self.end_of_epoch():
            self.epoch += 1
            self._resumed = False
        if not self._resumed:
            self._origin = self._started_at = 0
        self._resumed = False
        self._iterator = CountingIterator(self._batches(), start=self._started_at, total=len(self))
        return self._iterator

    def end_of_epoch(self) -> bool:
        """Whether the last batch was taken."""
        return self._iterator is not None and not self._iterator.has_next()

    @property
    def iterations_in_epoch(self) -> int:
        """Batches taken from the current epoch."""
        return self._started_at if self._iterator is None else self._iterator.n

    def state_dict(self) -> dict[str, Any]:
        """The place, the same on every process."""
        ended = self.end_of_epoch()
        taken = self.iterations_in_epoch - self._started_at
        samples = self._origin + taken * self.batch_size * self.num_shards
        return {
            "version": 2,
            "epoch": self.epoch + ended,
            "iterations_in_epoch": 0 if ended else self.iterations_in_epoch,
            "samples_in_epoch": 0 if ended else min(samples, len(self.dataset)),
            "shuffle": True,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a place."""
        self.epoch = state_dict["epoch"]
        step = self.batch_size * self.num_shards
        self._origin = state_dict.get("samples_in_epoch", state_dict.get("iterations_in_epoch", 0) * step)
        if self._origin >= self._stop:  # what is left is less than a batch, and left out
            self.epoch, self._origin = self.epoch + 1, 0
        batches, rest = divmod(self._origin, step)
        self._started_at = 0 if rest or batches % self._update_freq else batches
        self._resumed, self._iterator = True, None

    def _batches(self) -> Any:
        step = self.batch_size * self.num_shards
        first = self._origin + self.shard_id * self.batch_size
        starts = range(first, first + step * (len(self) - self._started_at), step)
        loader = DataLoader(
            _Stretches(self.dataset, (self.epoch - 1) // self._directories),
            batch_size=None,
            sampler=_StretchSampler(starts, self.batch_size, self._stop),
            num_workers=self._num_workers,
            timeout=self._timeout if self._num_workers else 0,
            pin_memory=torch.cuda.is_available(),
        )
        return BufferedIterator(self._buffer_size, loader) if self._buffer_size > 0 else loader


class _Stretches(Dataset[Batch]):
    """Gives a stretch's batch."""

    def __init__(self, dataset: PretrainingDataset, epoch: int):
        self.dataset, self.epoch = dataset, epoch

    def __getitem__(self, stretch: Stretch) -> Batch:
        return self.dataset.batch(self.epoch, *stretch)


class _StretchSampler(Sampler[Stretch]):
    """The stretches of one process; the last are shorter, or empty, where the epoch ends."""

    def __init__(self, starts: range, size: int, end: int):
        self.starts, self.size, self.end = starts, size, end

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Stretch]:
        for start in self.starts:
            yield start, min(start + self.size, self.end)
