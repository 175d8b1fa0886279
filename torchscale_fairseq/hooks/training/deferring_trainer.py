"""fairseq's Trainer without a wait for the device in each update."""

from functools import cached_property
from typing import Any

import torch
from fairseq import trainer as stock
from fairseq.distributed import utils as distributed_utils

from torchscale_fairseq.hooks.monitoring.update_statistics import log_norm, log_outputs
from torchscale_fairseq.hooks.training.documents import note_documents_of, with_documents
from torchscale_fairseq.hooks.training.masked_tokens import with_masked_positions
from torchscale_fairseq.hooks.training.norm_checks import LateFailure, UncheckedNorm, Unread, can_wait, failure, unread
from torchscale_fairseq.hooks.training.padding import note_padding


class DeferringTrainer(stock.Trainer):
    """Gradient norms are checked an update later, statistics are fetched when they are printed, and the host knows
    from its own copy of a batch whether there is padding, where documents begin and which tokens are masked. Losses,
    logs, errors and checkpoints are stock's."""

    _unread: Unread | None = None
    _samples: Any = None

    def train_step(self, samples: Any, raise_oom: bool = False) -> Any:
        """Stock's. An update whose figures are printed, and the last one, are checked at once."""
        self._samples = samples
        try:
            output = super().train_step(samples, raise_oom)
        except LateFailure:
            self.check_last_update()
            raise
        updates, last = self.get_num_updates(), self.cfg.optimization.max_update
        if updates % self.cfg.common.log_interval == 0 or 0 < last <= updates:
            self.check_last_update()
        return output

    def clip_grad_norm(self, clip_norm: float) -> Any:
        """Stock's norm, whose check can wait. Before it, that of the last update is checked."""
        if self._unread is not None and self._unread.has_failed():
            raise LateFailure
        self._unread = None
        norm = super().clip_grad_norm(clip_norm)
        return norm.as_subclass(UncheckedNorm) if self._norms_can_wait else norm

    @cached_property
    def _norms_can_wait(self) -> bool:
        return can_wait(self.cfg, self.optimizer)

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
        self._unread = unread(self.get_num_updates() + 1, self._samples, failed)

    def check_last_update(self) -> None:
        """Raise what stock raises if the gradients of the last update were not finite. The device has left the weights
        as they were, and the update is repeated as stock makes it.

        Raises:
            FloatingPointError: the gradients were not finite.
        """
        last, self._unread = self._unread, None
        if last is None or not last.has_failed():
            return
        self.optimizer.optimizer.take_back()
        self.set_num_updates(last.number - 1)
        self._norms_can_wait = False
        super().train_step(last.samples)
        raise FloatingPointError("gradients are Nan/Inf")

    def _reduce_and_log_stats(self, logging_outputs: Any, sample_size: Any, grad_norm: Any = None) -> Any:
        """Stock's, without fetching the figures of an update from the device."""
        if not isinstance(grad_norm, UncheckedNorm):
            return super()._reduce_and_log_stats(logging_outputs, sample_size, grad_norm)
        log_norm(grad_norm, self.cfg.optimization.clip_norm)
        return log_outputs(self.task, self.get_criterion(), logging_outputs, sample_size)

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
