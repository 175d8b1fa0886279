"""Updates of several processes in the test's own processes: what they read, and what they log."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from fairseq import utils
from fairseq.data.iterators import GroupedIterator
from fairseq.logging import metrics

from tests.distributed.reads import Reads
from tests.distributed.updates import make_trainer
from tests.plugin.halves import update_halves
from torchscale_fairseq.core.parallel.expert_parameters import is_expert
from torchscale_fairseq.hooks.experts import gradient_clipping
from torchscale_fairseq.hooks.training import deferring_trainer, mixed_precision, summing_trainer
from torchscale_fairseq.hooks.training.summing_trainer import log_before_an_epoch_ends
from torchscale_fairseq.optim import fused_adam_torch

CLOCKS = ("ups", "wps", "train_wall", "tps_device", "tflops", "mfu")
"""Figures that depend on the time."""


def trainer_and_batches(words: Sequence[str]) -> tuple[Any, list[Any]]:
    """A trainer as on a GPU, which compares norms of processes, and updates of two batches each."""
    trainer = make_trainer(words)
    if trainer._sharded is None:
        trainer._grad_norm_buf = torch.zeros(dist.get_world_size(), dtype=torch.float64)
    batches = trainer.get_train_iterator(1).next_epoch_itr(shuffle=False)
    return trainer, list(GroupedIterator(batches, 2))


def update(trainer: Any, samples: Any) -> Any:
    """One update, logged as in fairseq-train."""
    with metrics.aggregate("train"), metrics.aggregate("train_inner"):
        return trainer.train_step(samples)


def reads_of_an_update(words: Sequence[str]) -> list[str]:
    """What the host reads of the device in the third update of a run."""
    trainer, batches = trainer_and_batches(words)
    for samples in batches[:2]:
        update(trainer, samples)
    with Reads(trainer.get_model().parameters()) as reads:
        update(trainer, batches[2])
    found: list[str] = reads.found
    return found


def logged(words: Sequence[str], *, late: bool) -> list[dict[str, Any]]:
    """All that updates return and log, those of dummy batches in one process and in all among them.

    Args:
        words: of fairseq-train.
        late: read the figures of an update in the next one, as far as the training permits.
    """
    waits = mock.patch.object(deferring_trainer, "can_wait", lambda *_: False)
    with mock.MagicMock() if late else waits:
        trainer, batches = trainer_and_batches(words)
        dummy = [batches[1][0], None]
        first = dist.get_rank() == 0
        outputs = [update(trainer, s) for s in (batches[0], batches[1] if first else dummy, [None, None], batches[2])]
        trainer.check_last_update()
    found = [{name: float(value) for name, value in output.items()} for output in outputs]
    for name in ("train", "train_inner", "default"):
        found += [_state(key, meter) for key, meter in metrics.get_meters(name).items() if key not in CLOCKS]
    assert trainer.cumulative_training_time() > 0
    return found


def end_of_a_nan(words: Sequence[str]) -> tuple[int, str, float]:
    """A run whose loss is NaN in the second update of one process: after how many updates it ends, why, and how far
    the weights are then from those before the update."""
    trainer, batches = trainer_and_batches(words)
    stock = trainer.optimizer.backward

    def backward(loss: torch.Tensor) -> None:
        stock(loss * float("nan") if trainer.get_num_updates() == 1 and dist.get_rank() == 1 else loss)

    trainer.optimizer.backward = backward
    update(trainer, batches[0])
    before = [weight.detach().clone() for weight in trainer.optimizer.params]
    update(trainer, batches[1])
    try:
        update(trainer, batches[2])
    except FloatingPointError as error:
        far = max(float((w.detach() - b).abs().max()) for w, b in zip(trainer.optimizer.params, before, strict=True))
        return trainer.get_num_updates(), str(error), far
    raise AssertionError("nobody saw the NaN")


def steps_with_experts(words: Sequence[str], *, early: bool) -> tuple[list[str], list[float]]:
    """In which order three updates measure experts, sum figures and clip; and their norms.

    Args:
        words: of fairseq-train, for a model with experts in half precision.
        early: measure experts before figures are summed.
    """
    steps: list[str] = []
    norms: list[float] = []

    def noting(step: str, owner: Any, name: str) -> Any:
        function = getattr(owner, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            steps.append(step)
            result = function(*arguments, **options)
            if step == "clip":
                norms.append(float(result))
            return result

        return mock.patch.object(owner, name, noted)

    patches = [
        from_halves(),
        noting("measure", mixed_precision, "squares_of_experts"),
        noting("measure", gradient_clipping, "squares_of_experts"),
        noting("sum", summing_trainer, "sum_late"),
        noting("clip", utils, "clip_grad_norm_"),
    ]
    if not early:
        patches.append(mock.patch.object(summing_trainer, "measure_experts_early", lambda _: None))
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        trainer, batches = trainer_and_batches(words)
        for samples in batches[:3]:
            update(trainer, samples)
            steps.append("end")
    return steps, norms


@contextmanager
def from_halves() -> Iterator[None]:
    """Let the optimizer read gradients in half precision, as on a GPU."""
    with (
        mock.patch.object(fused_adam_torch, "DEVICES", ("cpu",)),
        mock.patch.object(fused_adam_torch, "update_from_halves", update_halves),
    ):
        yield


def end_of_an_infinite_expert(words: Sequence[str]) -> tuple[int, str]:
    """Four updates, in the third of which one process has an infinite gradient of experts. Returns how many count, and
    the error that ends them, if one does; then all weights are finite.

    Args:
        words: of fairseq-train, for a model with experts in half precision.
    """
    error = ""
    with from_halves():
        trainer, batches = trainer_and_batches(words)
        experts = [p for p in trainer.optimizer.fp16_params if is_expert(p)]
        spoiled = [sample["id"].tolist() for sample in batches[2]]
        stock = trainer.task.train_step

        def train_step(sample: Any, *arguments: Any, **options: Any) -> Any:
            result = stock(sample, *arguments, **options)
            if sample["id"].tolist() in spoiled and dist.get_rank() == 1:
                experts[0].grad.view(-1)[0] = float("inf")
            return result

        trainer.task.train_step = train_step
        try:
            for samples in batches[:4]:
                update(trainer, samples)
            trainer.check_last_update()
        except FloatingPointError as found:
            error = str(found)
    assert all(weight.isfinite().all() for weight in trainer.optimizer.fp16_params)
    return trainer.get_num_updates(), error


def averages_of_an_epoch(words: Sequence[str]) -> tuple[int, list[float]]:
    """The number of updates of an epoch, and how many batches are in averages when it ends and is printed."""
    trainer, batches = trainer_and_batches(words)
    for samples in batches:
        update(trainer, samples)
    counts: list[float] = []

    def stock(*arguments: Any) -> Any:
        counts.append(float(metrics.get_meter("train", "bsz").count))

    for end_of_epoch in (False, True):
        log_before_an_epoch_ends(stock)(trainer.cfg, trainer, trainer.task, None, [], end_of_epoch)
    return len(batches), counts


def stops(words: Sequence[str]) -> list[bool]:
    """Whether this process has agreed to stop after each of four updates, the second process being told before the
    third."""
    trainer, batches = trainer_and_batches(words)
    agreed = []
    for number in range(4):
        if number == 2 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        update(trainer, batches[number])
        agreed.append(trainer._stop == signal.SIGUSR1)
    return agreed


def _state(name: str, meter: Any) -> dict[str, float]:
    values = {f"{name} {part}": value for part, value in meter.state_dict().items() if part in ("val", "sum", "count")}
    return {part: float(value) for part, value in values.items() if value is not None}
