"""The Trainer that fairseq's train command builds when this package is its --user-dir."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq import trainer as stock

from torchscale_fairseq.core.layers.experts import Experts
from torchscale_fairseq.hooks import expert_checkpoints, expert_shards, gradient_clipping
from torchscale_fairseq.hooks.checkpoints import CheckpointError, describe_mismatch, read_mapped
from torchscale_fairseq.hooks.expert_options import prepare_options
from torchscale_fairseq.hooks.expert_shards import write_shard

logger = logging.getLogger(__name__)

CRASH = "crash.pt"


class Trainer(stock.Trainer):
    """fairseq's Trainer, with four repairs (docs/stock_repairs.md), and what experts in several processes need
    (docs/distributed.md)."""

    def __init__(self, cfg: Any, task: Any, model: Any, criterion: Any, quantizer: Any = None):
        self._split = expert_checkpoints.split_of(model)
        """How experts are held, if several processes hold them."""
        self._states_taken = 0
        has_experts = any(isinstance(module, Experts) for module in model.modules())
        if has_experts:
            prepare_options(cfg, several_processes=self._split is not None)
        if self._split is not None:
            experts = [name for name, p in model.named_parameters() if hasattr(p, "expert")]
            model._ddp_params_and_buffers_to_ignore = experts
        gradient_clipping.watch(model)
        super().__init__(cfg, task, model, criterion, quantizer)
        if has_experts and not hasattr(criterion, "mixture") and self.is_data_parallel_master:
            logger.warning(
                "--criterion %s leaves out the experts' balance loss (--moe-gate-loss-wt); moe_cross_entropy, "
                "moe_label_smoothed_cross_entropy and masked_lm_moe_cross_entropy have it",
                getattr(cfg.criterion, "_name", type(criterion).__name__),
            )

    def train_step(self, samples: Any, raise_oom: bool = False) -> Any:
        """Skips an update whose gradients overflow in fp16 on the CPU as well, where stock goes on to create a
        CUDA tensor. With experts in several processes, one that runs out of memory does not try to go on without
        the others."""
        with ExitStack() if self.cuda else _cuda_is_identity():
            return super().train_step(samples, raise_oom or self._split is not None)

    def valid_step(self, sample: Any, raise_oom: bool = False) -> Any:
        """The same for validation."""
        return super().valid_step(sample, raise_oom or self._split is not None)

    @property
    def always_call_state_dict_during_save_checkpoint(self) -> bool:
        """Whether the processes that write no checkpoint take part in collecting it."""
        return self._split is not None or bool(super().always_call_state_dict_during_save_checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """What one process would write, in the first process; with --moe-checkpoint-format sharded, without the
        experts, which each process writes itself."""
        state: dict[str, Any] = super().state_dict()
        if self._split is None:
            return state
        self._states_taken += 1
        if self._writes_shards:
            folder = Path(self.cfg.checkpoint.save_dir)
            write_shard(state, folder, self._split, self._expert_indices(), self.get_num_updates())
        else:
            expert_checkpoints.gather(state, self._split, self._expert_indices())
        return state

    def save_checkpoint(self, filename: str, extra_state: dict[str, Any]) -> Any:
        """Stock's; what is left of a crash holds the experts of its process alone, as the others may be gone."""
        if self._split is None or os.path.basename(filename) != CRASH:
            return super().save_checkpoint(filename, extra_state)
        split, self._split = self._split, None
        try:
            return super().save_checkpoint(filename, extra_state)
        finally:
            self._split = split

    def finish_saving(self, before: int) -> None:
        """What comes after a chance to write a checkpoint. Where the first process, this one, found nothing to write,
        it takes part in what the others were made to do; files that belong to checkpoints since removed go.

        Args:
            before: ``states_taken`` before.
        """
        if self._split is not None and self._states_taken == before:
            self.state_dict()
        if self._writes_shards and self.is_data_parallel_master:
            expert_shards.remove_unused(Path(self.cfg.checkpoint.save_dir), read_mapped)

    @property
    def states_taken(self) -> int:
        """How often ``state_dict`` was called."""
        return self._states_taken

    @property
    def _own_experts(self) -> range | None:
        """None for all."""
        split = self._split
        return None if split is None else range(split.first, split.first + split.local)

    @property
    def _writes_shards(self) -> bool:
        return self._split is not None and getattr(self.cfg.model, "moe_checkpoint_format", "merged") == "sharded"

    def _expert_indices(self) -> list[int]:
        return expert_checkpoints.expert_indices(chain(self._model.parameters(), self._criterion.parameters()))

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> Any:
        """Adapts the checkpoint to this run, and says which architectures meet where it does not fit the model."""
        try:
            with _adapting_checkpoints(self._adapt), expert_shards.reading_only(self._own_experts):
                return super().load_checkpoint(filename, *args, **kwargs)
        except CheckpointError:
            raise
        except Exception as error:
            if not str(error).startswith("Cannot load model parameters"):
                raise
            mismatch = describe_mismatch(filename, self.get_model(), self.cfg.model)
            if mismatch is None:
                raise
            raise CheckpointError(mismatch) from None

    def _adapt(self, state: dict[str, Any]) -> None:
        """Things that stock leaves out: --store-ema on a checkpoint without an average, where it fails with
        ``KeyError: 'model'``, starts from the weights; and the place in the data, kept in batches per process,
        is counted anew for another number of processes. Optimizer states of experts elsewhere are left out."""
        extra, config = state["extra_state"], state["cfg"]
        if self.cfg.ema.store_ema:
            extra.setdefault("ema", state["model"])
        place = extra["train_iterator"]
        if place.get("iterations_in_epoch") and config is not None:
            processes = config["distributed_training"]["distributed_world_size"]
            place["iterations_in_epoch"] = place["iterations_in_epoch"] * processes // self.data_parallel_world_size
        if self._split is not None:
            expert_checkpoints.take_own(state, self._split, self._expert_indices())


@contextmanager
def _cuda_is_identity() -> Iterator[None]:
    to_cuda = torch.Tensor.cuda
    torch.Tensor.cuda = lambda tensor, *args, **kwargs: tensor  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.cuda = to_cuda  # type: ignore[method-assign]


@contextmanager
def _adapting_checkpoints(adapt: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Meanwhile, ``adapt`` sees each checkpoint read before anyone else."""
    read = checkpoint_utils.load_checkpoint_to_cpu

    def read_and_adapt(*args: Any, **kwargs: Any) -> Any:
        state = read(*args, **kwargs)
        adapt(state)
        return state

    checkpoint_utils.load_checkpoint_to_cpu = read_and_adapt
    try:
        yield
    finally:
        checkpoint_utils.load_checkpoint_to_cpu = read
