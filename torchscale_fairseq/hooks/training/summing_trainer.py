"""fairseq's Trainer in several processes without a wait for the sums of their figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torchscale_fairseq.hooks.monitoring.update_statistics import (
    Statistics,
    active_aggregators,
    log_norm,
    log_outputs,
    logging_to,
    read_outputs,
)
from torchscale_fairseq.hooks.training.deferring_trainer import DeferringTrainer
from torchscale_fairseq.hooks.training.late_sums import LateSums, add_up, divisor, sum_late
from torchscale_fairseq.hooks.training.missing_batches import own_figures, own_last
from torchscale_fairseq.hooks.training.mixed_precision import measure_experts_early
from torchscale_fairseq.hooks.training.norm_checks import UncheckedNorm, Unread


@dataclass(frozen=True)
class SummedFigures:
    """The figures of one update, summed over processes."""

    sums: LateSums
    """The sample size, the training time, own numbers of the Trainer, and the criterion's figures."""
    names: tuple[str, ...]
    """Names of the criterion's figures."""

    def read(self) -> tuple[float, float, list[float], list[dict[str, Any]]]:
        """Wait for them: the sample size, the training time, own numbers, and the criterion's logging outputs."""
        sample_size, train_time, *rest = self.sums.read()
        own = len(rest) - len(self.names)
        figures = dict(zip(self.names, rest[own:], strict=True))
        outputs = [figures] if figures else []
        return float(sample_size), float(train_time), [float(number) for number in rest[:own]], outputs


@dataclass(frozen=True)
class Unlogged:
    """An update whose sums the host has not read."""

    figures: SummedFigures
    aggregators: dict[str, Any]
    """To which they are to be logged."""


class SummingTrainer(DeferringTrainer):
    """Where the check of a norm can wait, so does what processes tell each other in an update: the host reads the sums
    in the next one and logs them then. What is logged, and when it is printed, stays."""

    _summed: SummedFigures | None = None
    """Figures of the update that is being made."""
    _unlogged: Unlogged | None = None
    _alike: tuple[dict[str, Any], Any] | None = None
    """Figures and sample size of a batch. A process whose batches all run out of memory sums zeros of their kind."""
    _meters_run = False
    """Whether an update has been logged: fairseq's meters of speed begin to measure then."""

    def own_numbers(self) -> list[float]:
        """Numbers of this process that are summed over processes with the figures of an update, or of a batch in
        validation."""
        return []

    def take_sums(self, sums: Sequence[Any]) -> None:
        """Called with the sums of ``own_numbers`` when the host has them."""

    def log_sums(self) -> None:
        """Called after ``take_sums`` for an update whose figures are logged an update later."""

    def train_step(self, samples: Any, raise_oom: bool = False) -> Any:
        """Stock's. The first update of a run is logged at once. One of several processes that runs out of memory there
        does not try to go on, as it does not know which figures the others sum."""
        unprepared = self.data_parallel_world_size > 1 and self._alike is None
        output = super().train_step(own_last(samples), raise_oom or unprepared)
        if not self._meters_run and self._unlogged is not None and not self.check_last_update():
            return None
        return output

    def check_last_update(self) -> bool:
        """Whether the last update counts; its figures are logged then.

        Raises:
            FloatingPointError: as the base class says.
        """
        counts = super().check_last_update()
        self._log_last_update()
        return counts

    def _repeat(self, update: Unread) -> Any:
        """As the base class; what the update would have logged does not count."""
        self._unlogged = None
        return super()._repeat(update)

    @property
    def _sums_can_wait(self) -> bool:
        criterion = self.get_criterion()
        return self._model.training and self._defers and self.task.logging_outputs_can_be_summed(criterion)

    def _aggregate_logging_outputs(self, logging_outputs: Any, *extra: Any, ignore: bool = False) -> Any:
        """Stock's, with ``own_numbers``. In an update whose sums are read later: the number of batches without memory
        is this process's, and the training time that of the update before; fairseq reads neither in an update."""
        own, self._summed = self.own_numbers(), None
        counted = own_figures(logging_outputs)
        logging_outputs, ignore = counted or logging_outputs, ignore or not counted
        if self._model.training and logging_outputs:
            self._alike = logging_outputs[0], extra[0]
        elif self._model.training and self._alike is not None:
            (figures, sample_size), ignore = self._alike, True
            logging_outputs, extra = [figures], (0 * sample_size, *extra[1:])
        if not self._sums_can_wait:
            outputs, sums = super()._aggregate_logging_outputs(logging_outputs, *extra, *own, ignore=ignore)
            self.take_sums(sums[len(extra) :])
            return outputs, sums[: len(extra)]
        measure_experts_early(self.optimizer)  # the sums below, too, are after those of gradients
        sample_size, ooms, train_time = extra
        figures = add_up(logging_outputs, ignore=ignore)
        values = [sample_size, train_time, *own, *figures.values()]
        sums = sum_late(values, self.device, self.data_parallel_process_group)
        self._summed = SummedFigures(sums, tuple(figures))
        last_time = train_time if self._cumulative_training_time is None else self._cumulative_training_time
        return [], (divisor(sums.on_device[0]), ooms, last_time * self.data_parallel_world_size)

    def _reduce_and_log_stats(self, logging_outputs: Any, sample_size: Any, grad_norm: Any = None) -> Any:
        """Stock's, or what can be logged without the sums of this update, and the sums of the one before."""
        summed, self._summed = self._summed, None
        if summed is None or not isinstance(grad_norm, UncheckedNorm):
            return super()._reduce_and_log_stats(logging_outputs, sample_size, grad_norm)
        self._log_last_update()
        self.when_counted(partial(log_norm, grad_norm, self.cfg.optimization.clip_norm))
        self._unlogged = Unlogged(summed, active_aggregators())
        return Statistics(partial(self._statistics_of, summed))

    def _statistics_of(self, update: SummedFigures) -> dict[str, Any]:
        sample_size, _, _, outputs = update.read()
        return read_outputs(self.task, self.get_criterion(), outputs, sample_size)

    def _log_last_update(self) -> None:
        last, self._unlogged = self._unlogged, None
        if last is None:
            return
        sample_size, train_time, own, outputs = last.figures.read()
        self._cumulative_training_time = train_time / self.data_parallel_world_size
        with logging_to(last.aggregators):
            self.take_sums(own)
            self.log_sums()
            log_outputs(self.task, self.get_criterion(), outputs, sample_size)
        self._meters_run = True


def log_before_an_epoch_ends(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq_cli.train.validate_and_save``, after whose last call in an epoch the averages of the epoch are
    printed."""

    def validate_and_save(
        cfg: Any, trainer: Any, task: Any, epoch_itr: Any, valid_subsets: list[str], end_of_epoch: bool
    ) -> Any:
        if end_of_epoch:
            trainer.check_last_update()
        return stock(cfg, trainer, task, epoch_itr, valid_subsets, end_of_epoch)

    return validate_and_save
