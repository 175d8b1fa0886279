"""Checkpoints of a model whose experts or layers several processes hold: what one process would have written."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

from torchscale_fairseq.checkpoints import distributed
from torchscale_fairseq.checkpoints import shards as expert_shards
from torchscale_fairseq.checkpoints.reading import read_mapped
from torchscale_fairseq.hooks.experts import checkpoints as expert_checkpoints
from torchscale_fairseq.hooks.options.model_options import model_options
from torchscale_fairseq.hooks.runs import finished
from torchscale_fairseq.hooks.sharding.asynchronous import PendingSave, SavedIterator, SavedTrainer, SliceWriter
from torchscale_fairseq.hooks.sharding.checkpoints import WRAPPERS
from torchscale_fairseq.hooks.training.adapters import save_adapters_alone
from torchscale_fairseq.hooks.training.sharded_trainer import ShardedTrainer

logger = logging.getLogger(__name__)

CRASH = "crash.pt"


class SavingTrainer(ShardedTrainer):
    """All processes collect a checkpoint together before fairseq's function for saving runs, whose first process may
    then write it or not."""

    _collected: dict[str, Any] | None = None
    """The state to be saved, while it is."""
    _pending: PendingSave | None = None
    """The checkpoint that is being written while training goes on."""

    @cached_property
    def _slice_writer(self) -> SliceWriter:
        return SliceWriter()

    def state_dict(self) -> dict[str, Any]:
        """The state that one process would write, in the first process within ``saving_together``; elsewhere the state
        of this process. With --moe-checkpoint-format sharded it lacks the experts, and with --checkpoint-format sharded
        all tensors, which each process writes itself; with --lora-rank it has the adapters alone."""
        if self._collected is not None:
            return self._collected
        state: dict[str, Any] = super().state_dict()
        if self.cfg.checkpoint.patience > 0:
            state["extra_state"][finished.EARLY_STOP] = finished.early_stop_counts()
        save_adapters_alone(state, self._model, self.cfg)
        return state

    @contextmanager
    def saving_together(self) -> Iterator[None]:
        """Within the block, the first process has the whole state. All processes enter and leave it together. Files
        next to checkpoints that are gone are removed at its end."""
        if self._split is None and self._sharded is None:
            yield
            return
        self.consolidate_optimizer()
        self._collected = self._collect()
        try:
            yield
        finally:
            self._collected = None
        self._remove_unused()

    def _collect(self) -> dict[str, Any]:
        state, folder = self.state_dict(), Path(self.cfg.checkpoint.save_dir)
        if self._writes_folders:
            distributed.write(*self._detach(state))
            return state
        if self._sharded is not None:
            _name_as_elsewhere(state, self.cfg.common)
            self._sharded_states.gather(state)
        if self._split is None:
            return state
        if self._writes_shards:
            expert_shards.write_shard(state, folder, self._split, self._expert_indices(), self.get_num_updates())
        else:
            expert_checkpoints.gather(state, self._split, self._expert_indices())
        return state

    def _detach(self, state: dict[str, Any]) -> Any:
        """Take the tensors out of a state. Returns them and the folder to which they go."""
        _name_as_elsewhere(state, self.cfg.common)
        folder = Path(self.cfg.checkpoint.save_dir)
        return self._sharded_states.detach(state, folder, self.get_num_updates(), self.device)

    def _remove_unused(self) -> None:
        folder = Path(self.cfg.checkpoint.save_dir)
        if self._sharded is not None and self.is_data_parallel_master:
            distributed.remove_unused(folder, read_mapped)
        if self._writes_shards and self.is_data_parallel_master:
            expert_shards.remove_unused(folder, read_mapped)

    def save_checkpoint(self, filename: str, extra_state: dict[str, Any]) -> Any:
        """Save as stock does, but for the checkpoint after a crash: it holds the experts of its process alone, as the
        other processes may be gone. There is none with --no-save, or of a sharded model, of which no process has a
        whole layer."""
        if os.path.basename(filename) == CRASH and self.cfg.checkpoint.no_save:
            return None
        if self._sharded is not None and os.path.basename(filename) == CRASH:
            logger.warning(
                "no %s is written: a process holds a slice of the model (--ddp-backend fully_sharded)", CRASH
            )
            return None
        return super().save_checkpoint(filename, extra_state)

    @property
    def saves_asynchronously(self) -> bool:
        """Whether training goes on while a checkpoint is written."""
        return self._writes_folders and model_options(self.cfg.model).async_checkpoint

    def train_step(self, samples: Any, raise_oom: bool = False) -> Any:
        """Stock's. Before the second update, when the optimizer has its states, memory for copies of them begins to be
        reserved."""
        saves = self.saves_asynchronously and not self.cfg.checkpoint.no_save
        if saves and not self._slice_writer.is_ready and self.get_num_updates():
            self.consolidate_optimizer()
            self._slice_writer.reserve(self._sharded_states.tensors_of(self.state_dict()))
        return super().train_step(samples, raise_oom)

    def begin_saving(self, stock: Callable[..., Any], cfg: Any, epoch_itr: Any, val_loss: Any) -> None:
        """Begin what fairseq's ``save_checkpoint`` does, and finish it when the tensors are on the disk.

        Args:
            stock: fairseq's function.
            cfg, epoch_itr, val_loss: its arguments.
        """
        self.finish_pending_save()
        self.consolidate_optimizer()
        state = self.state_dict()
        self._pending = pending = PendingSave(self._slice_writer, *self._detach(state))
        if self.is_data_parallel_master:
            frozen = (SavedTrainer(self, state), SavedIterator(epoch_itr))
            pending.announce = partial(stock, cfg, *frozen, val_loss)

    def finish_pending_save(self) -> None:
        """Wait for the checkpoint that is being written, if there is one."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.finish()
            self._remove_unused()

    @property
    def _writes_folders(self) -> bool:
        return self._sharded is not None and model_options(self.cfg.model).checkpoint_format != "merged"

    @property
    def _writes_shards(self) -> bool:
        return self._split is not None and model_options(self.cfg.model).moe_checkpoint_format == "sharded"

    def _expert_indices(self) -> list[int]:
        return expert_checkpoints.expert_indices(chain(self._model.parameters(), self._criterion.parameters()))


def _name_as_elsewhere(state: dict[str, Any], common: Any) -> None:
    """Record the optimizer under the name that it has where a model is not sharded, which fairseq compares."""
    if common.fp16 or common.bf16:
        state["optimizer_history"][-1]["optimizer_name"] = WRAPPERS[0]
