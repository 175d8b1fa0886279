"""--async-checkpoint: training continues while a checkpoint is written.

A save copies the slices to host memory and starts a thread that writes them. When it is done, fairseq's own function
for saving runs with what the Trainer held then, so that a checkpoint appears under its names when it is whole.
"""

from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from fairseq import checkpoint_utils, utils
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import FileSystemWriter

from torchscale_fairseq.checkpoints.distributed import SCRATCH, WRITERS
from torchscale_fairseq.hooks.sharding.host_copies import HostCopies


@cache
def _host_group() -> ProcessGroup:
    """All processes, for what they exchange from host memory; the first call is for all of them together."""
    return dist.new_group(backend="gloo")


class SliceWriter:
    """Copies tensors to host memory and writes the copies in threads."""

    def __init__(self) -> None:
        self._copies: HostCopies | None = None

    @property
    def is_ready(self) -> bool:
        """Whether memory for copies has been asked for."""
        return self._copies is not None

    def reserve(self, tensors: dict[str, Tensor]) -> None:
        """Begin to reserve memory for copies of tensors, unless there is some. No save may be going on.

        Args:
            tensors: plain ones or DTensors.
        """
        if self._copies is None or not self._copies.fit(tensors):
            self._copies = HostCopies(tensors)

    def begin(self, tensors: dict[str, Tensor], folder: Path) -> "Future[Any]":
        """Copy tensors, plain ones or DTensors, and begin to write them to a new folder; all processes call it at once.
        The tensors may change when this returns. The future is done when all processes have written theirs; another
        save must not begin before."""
        self.reserve(tensors)
        assert self._copies is not None
        writer = _CopyingWriter(folder, self._copies)
        written: Any = dcp.async_save(tensors, checkpoint_id=folder, storage_writer=writer, process_group=_host_group())
        future: Future[Any] = written
        return future


class _CopyingWriter(FileSystemWriter):
    """Copies tensors before threads write them.

    Args:
        folder: new.
        copies: with room for the tensors.
    """

    def __init__(self, folder: Path, copies: HostCopies):
        super().__init__(folder, thread_count=WRITERS, per_thread_copy_ahead=0)  # copies are in host memory
        self._copies = copies

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Copy tensors to host memory."""
        return dict(self._copies.take(state_dict))


class PendingSave:
    """A folder of tensors that is being written.

    Args:
        writer: copies them.
        tensors: plain ones or DTensors; they may change when this returns.
        folder: takes its name in ``finish``.
    """

    def __init__(self, writer: SliceWriter, tensors: dict[str, Tensor], folder: Path):
        self._folder = folder
        self._scratch = folder.with_name(folder.name + SCRATCH)
        self._written = writer.begin(tensors, self._scratch)
        self.announce: Callable[[], Any] | None = None
        """Writes the checkpoint that names the folder, in the first process."""

    def done(self) -> bool:
        """Whether all processes have written their part, as far as this one knows."""
        return self._written.done()

    def finish(self) -> None:
        """Wait for all processes, and let the checkpoint appear."""
        self._written.result()
        if self.announce is not None:
            self._scratch.rename(self._folder)
            self.announce()


class SavedTrainer:
    """The interface of a Trainer that fairseq's function for saving uses, as it was when the save began.

    Args:
        trainer: fairseq's.
        state: its state without the tensors.
    """

    data_parallel_rank = 0
    should_save_checkpoint_on_current_rank = True

    def __init__(self, trainer: Any, state: dict[str, Any]):
        self.task = trainer.task
        self.checkpoint_suffix = trainer.checkpoint_suffix
        self._updates = trainer.get_num_updates()
        self._state = utils.move_to_cpu(state)

    def consolidate_optimizer(self) -> None:
        """There is nothing left to collect."""

    def get_num_updates(self) -> int:
        """Updates when the save began."""
        return int(self._updates)

    def save_checkpoint(self, filename: str, extra_state: dict[str, Any]) -> str:
        """Write the state."""
        self._state["extra_state"].update(extra_state)
        checkpoint_utils.torch_persistent_save(self._state, filename)
        return filename


class SavedIterator:
    """The place in the data when a save began.

    Args:
        epoch_itr: fairseq's iterator.
    """

    def __init__(self, epoch_itr: Any):
        self.epoch = epoch_itr.epoch
        self._at_end = epoch_itr.end_of_epoch()
        self._state = epoch_itr.state_dict()

    def end_of_epoch(self) -> bool:
        """Whether the epoch was done."""
        return bool(self._at_end)

    def state_dict(self) -> dict[str, Any]:
        """State of the iterator when the save began."""
        return dict(self._state)
