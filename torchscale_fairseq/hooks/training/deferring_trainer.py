"""fairseq's Trainer without a wait for the device in each update."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from fairseq import trainer as stock
from fairseq.distributed import utils as distributed_utils

from torchscale_fairseq.hooks.monitoring.update_statistics import (
    Statistics,
    log_norm,
    log_outputs,
    logging_to,
    read_outputs,
)
from torchscale_fairseq.hooks.training.documents import note_documents_of, with_documents
from torchscale_fairseq.hooks.training.loss_scaling import clip_without_waiting
from torchscale_fairseq.hooks.training.masked_tokens import with_masked_positions
from torchscale_fairseq.hooks.training.norm_checks import LateFailure, UncheckedNorm, Unread, can_wait, failure, unread
from torchscale_fairseq.hooks.training.padding import note_padding


class DeferringTrainer(stock.Trainer):
    """Gradient norms are checked an update later, statistics are fetched when they are printed, and the host knows
    from its own copy of a batch whether there is padding, where documents begin and which tokens are masked. Losses,
    logs, errors, loss scales and checkpoints are stock's."""

    _unread: Unread | None = None
    _samples: Any = None
    _repeating = False
    """Whether an update is repeated as stock makes it."""
    _steady = False
    """Whether the last update was made, as far as is known. Where none was, the next one, too, may overflow."""

    def train_step(self, samples: Any, raise_oom: bool = False) -> Any:
        """Stock's. An update that somebody looks at when it is made is checked at once."""
        self._samples = samples
        try:
            output = self._step(samples, raise_oom)
        except LateFailure:
            self.check_last_update()  # ends here, or else the loss scale is another one now
            output = self._step(samples, raise_oom)
        if self._is_looked_at() and not self.check_last_update():
            output = None
        self._steady = output is not None
        return output

    def _step(self, samples: Any, raise_oom: bool = False) -> Any:
        """Stock's, which creates a CUDA tensor when it skips an update, even on a CPU."""
        with nullcontext() if self.cuda else _cuda_is_identity():
            return super().train_step(samples, raise_oom)

    def _is_looked_at(self) -> bool:
        """Whether fairseq asks at once for the number of updates: it is printed, or decides whether to validate, to
        save or to stop. If the update after that is skipped, fairseq validates and saves once more. The end of an
        epoch is looked after by ``summing_trainer.log_before_an_epoch_ends``."""
        updates, cfg = self.get_num_updates(), self.cfg
        intervals = (cfg.checkpoint.save_interval_updates, cfg.dataset.validate_interval_updates)
        return (
            updates % cfg.common.log_interval == 0
            or 0 < cfg.optimization.max_update <= updates
            or 0 < cfg.optimization.stop_time_hours < self.cumulative_training_time() / 3600
            or any(updates % interval in (0, 1) for interval in intervals if interval > 0)
        )

    def clip_grad_norm(self, clip_norm: float) -> Any:
        """Stock's norm, whose check can wait. Before it, that of the last update is checked."""
        last = self._unread
        if last is not None:
            if last.has_failed():
                raise LateFailure
            last.count()
        self._unread = None
        if not self._defers:
            return super().clip_grad_norm(clip_norm)
        norm = clip_without_waiting(self.optimizer, super().clip_grad_norm, clip_norm)
        return norm.as_subclass(UncheckedNorm)

    @property
    def _defers(self) -> bool:
        """Whether the check of the update that is being made can wait."""
        scaled = getattr(self.optimizer, "scaler", None) is not None
        return self._norms_can_wait and not self._repeating and (self._steady or not scaled)

    @cached_property
    def _norms_can_wait(self) -> bool:
        return can_wait(self.cfg, self.optimizer, self.task, self._model, self._criterion)

    def _check_grad_norms(self, grad_norm: Any) -> None:
        """Stock's check, or one on the device that the host reads an update later."""
        if not isinstance(grad_norm, UncheckedNorm):
            super()._check_grad_norms(grad_norm)
            return
        norms = grad_norm.as_subclass(torch.Tensor).reshape(1)
        if self._grad_norm_buf is not None:
            norms = self._grad_norm_buf.zero_()
            norms[self.data_parallel_rank] = grad_norm.as_subclass(torch.Tensor)
            distributed_utils.all_reduce(norms, group=self.data_parallel_process_group)
        failed = failure(norms)
        self.optimizer.optimizer.found_inf = failed
        scaler = getattr(self.optimizer, "scaler", None)
        self._unread = unread(self.get_num_updates() + 1, self._samples, failed, scaler)

    def check_last_update(self) -> bool:
        """Whether the last update counts. If its gradients were not finite, the device has left the weights as they
        were, and the update is repeated as stock makes it: it is skipped under --fp16.

        Raises:
            FloatingPointError: the gradients were not finite without --fp16, or the loss scale is too low.
        """
        last, self._unread = self._unread, None
        if last is None:
            return True
        if not last.has_failed():
            last.count()
            return True
        self._steady = self._repeat(last) is not None
        if last.scaler is None:
            raise FloatingPointError("gradients are Nan/Inf")
        return self._steady

    def _repeat(self, update: Unread) -> Any:
        """Make an update as stock makes it, which the device has left out."""
        self.optimizer.optimizer.take_back()
        self.set_num_updates(update.number - 1)
        if update.scaler is not None:
            vars(self.optimizer.scaler).update(update.scaler)
        self._repeating = True
        try:
            with logging_to(update.aggregators):
                return self._step(update.samples)
        finally:
            self._repeating = False

    def when_counted(self, action: Callable[[], Any]) -> None:
        """Do something about the last update, later if the update may yet be skipped."""
        if self._unread is None or self._unread.scaler is None:
            action()
        else:
            self._unread.pending.append(action)

    def _reduce_and_log_stats(self, logging_outputs: Any, sample_size: Any, grad_norm: Any = None) -> Any:
        """Stock's, without fetching the figures of an update from the device."""
        if not isinstance(grad_norm, UncheckedNorm):
            return super()._reduce_and_log_stats(logging_outputs, sample_size, grad_norm)
        figures = (self.task, self.get_criterion(), logging_outputs, sample_size)
        self.when_counted(partial(log_norm, grad_norm, self.cfg.optimization.clip_norm))
        self.when_counted(partial(log_outputs, *figures))
        return Statistics(partial(read_outputs, *figures))

    def consolidate_optimizer(self) -> None:
        """Stock's, which every process calls before a checkpoint is written."""
        self.check_last_update()
        super().consolidate_optimizer()

    def lr_step(self, epoch: int, val_loss: Any = None) -> Any:
        """Stock's, at the end of an epoch."""
        self.check_last_update()
        return super().lr_step(epoch, val_loss)

    def valid_step(self, sample: Any, raise_oom: bool = False) -> Any:
        """Stock's."""
        self.check_last_update()
        return super().valid_step(sample, raise_oom)

    def _prepare_sample(self, sample: Any, is_dummy: bool = False) -> Any:
        """Stock's: the batch on the device."""
        sample = with_documents(sample, self._model)
        sample = with_masked_positions(sample, self._model, self._criterion, self.device)
        prepared, is_dummy = super()._prepare_sample(sample, is_dummy)
        if not is_dummy and self.task.source_dictionary is not None:
            note_padding(sample, prepared, self.task.source_dictionary.pad())
        note_documents_of(sample, prepared)
        return prepared, is_dummy


@contextmanager
def _cuda_is_identity() -> Iterator[None]:
    to_cuda = torch.Tensor.cuda
    torch.Tensor.cuda = lambda tensor, *args, **kwargs: tensor  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.cuda = to_cuda  # type: ignore[method-assign]
