"""The Trainer that fairseq's train command builds when this package is its --user-dir."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq import trainer as stock

from torchscale_fairseq.hooks.checkpoints import CheckpointError, describe_mismatch


class Trainer(stock.Trainer):
    """fairseq's Trainer, with four repairs (docs/stock_repairs.md)."""

    def train_step(self, samples: Any, raise_oom: bool = False) -> Any:
        """Skips an update whose gradients overflow in fp16 on the CPU as well, where stock goes on to create a
        CUDA tensor."""
        with ExitStack() if self.cuda else _cuda_is_identity():
            return super().train_step(samples, raise_oom)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> Any:
        """Adapts the checkpoint to this run, and says which architectures meet where it does not fit the model."""
        try:
            with _adapting_checkpoints(self._adapt):
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
        """Two things that stock leaves out: --store-ema on a checkpoint without an average, where it fails with
        ``KeyError: 'model'``, starts from the weights; and the place in the data, kept in batches per process,
        is counted anew for another number of processes."""
        extra, config = state["extra_state"], state["cfg"]
        if self.cfg.ema.store_ema:
            extra.setdefault("ema", state["model"])
        place = extra["train_iterator"]
        if place.get("iterations_in_epoch") and config is not None:
            processes = config["distributed_training"]["distributed_world_size"]
            place["iterations_in_epoch"] = place["iterations_in_epoch"] * processes // self.data_parallel_world_size


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
