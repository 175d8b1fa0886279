"""--fp16 without a wait for the device, against fairseq's way: whole trainings with overflows at chosen batches."""

import json
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq import checkpoint_utils
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.logging import metrics
from fairseq_cli import train as command
from torch import nn

from tests.plugin.trainers import make_batch, make_trainer, update
from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.hooks.training import deferring_trainer as ours
from torchscale_fairseq.hooks.training.loss_scaling import can_defer_overflows, clip_without_waiting
from torchscale_fairseq.hooks.training.summing_trainer import log_before_an_epoch_ends

FLAGS = ["--optimizer", "fused_adam_torch", "--lr", "3e-3", "--fp16", "--fp16-scale-window", "4", "--dropout", "0.1"]
FLAGS += ["--lr-scheduler", "inverse_sqrt", "--warmup-updates", "5", "--batch-size", "2", "--tokens-per-sample", "32"]
FLAGS += ["--log-format", "json", "--log-interval", "5", "--max-epoch", "2", "--max-update", "0"]
FLAGS += ["--save-interval-updates", "4", "--validate-interval-updates", "4"]
OF_TIME = ("wps", "ups", "tps_device", "train_wall", "wall", "gb_free", "tflops", "mfu")


@dataclass
class Run:
    """What is left of a training."""

    trainer: Any
    lines: list[Any]
    """What it logged, without times."""
    ended_by: str
    """The error, if there was one."""
    batches: int
    repeated: int
    """Updates that were found to overflow after the next one had begun."""


class Lines(logging.Handler):
    """Everything that is logged, without times."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name.startswith("torchscale_fairseq"):  # some of it once per process
            return
        if text.startswith("{"):
            found = json.loads(text)
            self.lines.append({name: found[name] for name in found if not name.endswith(OF_TIME)})
        elif "checkpoint" not in text:  # lines with seconds, and the folder
            self.lines.append((record.name, text))


@contextmanager
def logged() -> Iterator[list[Any]]:
    """What is logged meanwhile."""
    handler, root = Lines(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield handler.lines
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def train(data: Path, folder: Path, flags: Collection[str], spoil: Callable[[Any, int], None]) -> Run:
    """Train as fairseq-train does.

    Args:
        data: binarised text.
        folder: for checkpoints.
        flags: further ones.
        spoil: gets the model, with gradients, and the number of the update's batch, counted from 1.
    """
    folder.mkdir()
    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    trainer = make_trainer(data, folder, *FLAGS, *flags)
    run = Run(trainer, [], "", 0, 0)
    watch(run, spoil)
    trainer.task.load_dataset("valid")
    with logged() as run.lines, pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "validate_and_save", log_before_an_epoch_ends(command.validate_and_save))
        try:
            epochs(trainer)
        except FloatingPointError as error:
            run.ended_by = str(error)
    return run


def watch(run: Run, spoil: Callable[[Any, int], None]) -> None:
    """Number the batches, spoil their gradients, and count late discoveries."""
    trainer, task = run.trainer, run.trainer.task
    take, step, check = trainer.train_step, task.train_step, trainer.check_last_update

    def numbering_step(samples: Any, *options: Any) -> Any:
        run.batches += 1
        samples[0]["number"] = run.batches
        return take(samples, *options)

    def spoilt_step(sample: Any, model: Any, *rest: Any, **options: Any) -> Any:
        result = step(sample, model, *rest, **options)
        if "number" in sample:
            spoil(model, sample["number"])
        return result

    def counting_check() -> bool:
        run.repeated += trainer._unread is not None and trainer._unread.has_failed()
        return bool(check())

    trainer.train_step, task.train_step, trainer.check_last_update = numbering_step, spoilt_step, counting_check


def epochs(trainer: Any) -> None:
    """fairseq-train's loop over epochs."""
    batches, stop = trainer.get_train_iterator(1), False
    while not stop and batches.next_epoch_idx <= trainer.cfg.optimization.max_epoch:
        losses, stop = command.train(trainer.cfg, trainer, trainer.task, batches)
        trainer.lr_step(batches.epoch, losses[0])
        batches = trainer.get_train_iterator(batches.next_epoch_idx, load_dataset=False)


def both(data: Path, folder: Path, flags: Collection[str], spoil: Callable[[Any, int], None]) -> tuple[Run, Run]:
    """A training with fairseq's checks, and one with ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "can_wait", lambda *_: False)
        stock = train(data, folder / "stock", flags, spoil)
    return stock, train(data, folder / "ours", flags, spoil)


def infinite_at(*numbers: int, value: float = float("inf")) -> Callable[[Any, int], None]:
    """Gradients of these batches are infinite, at any loss scale."""

    def spoil(model: Any, number: int) -> None:
        if number in numbers:
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = value

    return spoil


def assert_equal(found: Any, expected: Any, name: str = "") -> None:
    """Every entry of two states."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), name
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key, value in expected.items():
            assert_equal(found[key], value, f"{name}.{key}")
    else:
        assert found == expected, name


def assert_alike(found: Run, expected: Run) -> None:
    """Logs, weights, the optimizer's states, the scaler's, and every checkpoint."""
    assert found.ended_by == expected.ended_by
    assert found.batches == expected.batches
    for one, other in zip(found.lines, expected.lines, strict=True):
        assert one == other
    one, other = found.trainer, expected.trainer
    assert one.get_num_updates() == other.get_num_updates() and one.get_lr() == other.get_lr()
    assert vars(one.optimizer.scaler) == vars(other.optimizer.scaler)
    assert_equal(one.get_model().state_dict(), other.get_model().state_dict())
    folders = [Path(run.trainer.cfg.checkpoint.save_dir) for run in (found, expected)]
    names = [sorted(path.name for path in folder.glob("*.pt")) for folder in folders]
    assert names[0] == names[1] != []
    for name in names[0]:
        states = [load_checkpoint(folder / name) for folder in folders]
        for part in ("model", "last_optimizer_state"):
            assert_equal(states[0][part], states[1][part], f"{name}: {part}")
        histories = [state["optimizer_history"][-1] for state in states]
        assert histories[0] == histories[1]
        places = [state["extra_state"].get("train_iterator") for state in states]
        assert places[0] == places[1]


CASES: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "none": ([], ()),
    "two in a row": ([], (6, 7)),
    "the first two": ([], (1, 2)),
    "the last before a checkpoint": ([], (4,)),
    "the first after a checkpoint": (["--log-interval", "100"], (5,)),
    "the last of an epoch": (["--disable-validation", "--save-interval-updates", "0"], (9, 18)),
    "the last of all": (["--max-update", "7"], (7, 8)),
    "printed": (["--log-interval", "1"], (2, 3, 6)),
    "tolerated": (["--fp16-scale-tolerance", "0.5"], (3, 6, 7, 8)),
    "down to a threshold": (["--threshold-loss-scale", "64"], (3, 5, 7)),
    "several batches per update": (["--update-freq", "3"], (2, 3, 5)),
    "seldom clipped": (["--clip-norm", "0.25"], (3, 6)),
    "without copies in float32": (["--memory-efficient-fp16", "--clip-norm", "0.25"], (3, 6, 7)),
}
"""Flags, and the batches whose gradients are infinite. An epoch has nine batches."""
MORE: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "one": ([], (6,)),
    "five in a row": ([], (6, 7, 8, 9, 10)),
    "two before a checkpoint": ([], (3, 4)),
    "two at the end of an epoch": ([], (8, 9)),
    "the first of an epoch": ([], (10,)),
    "the one before the last": (["--max-update", "7"], (6,)),
    "every other": ([], tuple(range(1, 19, 2))),
    "not clipped": (["--clip-norm", "0"], (3, 6)),
    "unflattened": (["--fp16-no-flatten-grads"], (3, 6)),
    "without copies, clipped": (["--memory-efficient-fp16"], (3,)),
}


def cases() -> list[Any]:
    return [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE)]


@pytest.mark.parametrize("case", cases())
def test_overflows_are_skipped_as_stock_does(case: str, language_data: Path, tmp_path: Path) -> None:
    flags, numbers = {**CASES, **MORE}[case]
    stock, found = both(language_data, tmp_path, flags, infinite_at(*numbers))
    assert found.trainer._norms_can_wait and not stock.trainer._norms_can_wait
    overflows = [line for line in found.lines if "gradient overflow detected" in str(line)]
    assert len(overflows) == sum(number <= found.batches for number in numbers)
    late = [number for number in numbers if 1 < number <= found.batches and number - 1 not in numbers]
    assert found.repeated == len(late) and stock.repeated == 0
    assert_alike(found, stock)


def test_nan_is_an_overflow(language_data: Path, tmp_path: Path) -> None:
    stock, found = both(language_data, tmp_path, [], infinite_at(6, value=float("nan")))
    assert found.repeated == 1
    assert_alike(found, stock)


@pytest.mark.parametrize(("scale", "late"), [(2**16, 2), (2**22, 1)], ids=["nearly", "by far"])
def test_a_loss_scale_that_is_too_high_falls(scale: int, late: int, language_data: Path, tmp_path: Path) -> None:
    """Gradients overflow by themselves, as after every rise; no batch is repeated before the first update is made."""
    flags = ["--fp16-init-scale", str(scale), "--fp16-scale-window", "2"]
    stock, found = both(language_data, tmp_path, flags, infinite_at())
    assert found.repeated >= late
    assert_alike(found, stock)


@pytest.mark.parametrize("more", [[], ["--log-interval", "1"]], ids=["late", "printed"])
def test_the_least_loss_scale_ends_the_run(more: list[str], language_data: Path, tmp_path: Path) -> None:
    """With stock's message and its checkpoint of the crash."""
    flags = ["--min-loss-scale", "32", *more]
    stock, found = both(language_data, tmp_path, flags, infinite_at(2, 4))
    assert found.ended_by.startswith("Minimum loss scale reached (32.0). Your loss is probably exploding.")
    assert (tmp_path / "ours" / "crash.pt").exists()
    found.batches -= not more  # the next one had begun
    assert_alike(found, stock)


LOOKS: dict[str, Callable[[Any], Any]] = {
    "checkpoint": lambda trainer: trainer.consolidate_optimizer(),
    "validation": lambda trainer: trainer.valid_step(make_batch(1)),
    "end of epoch": lambda trainer: trainer.lr_step(1),
}


@pytest.mark.parametrize("look", LOOKS)
def test_an_overflow_is_skipped_before_anything_else(look: str, language_data: Path, tmp_path: Path) -> None:
    """Without a batch that would have to be computed again."""
    flags = [*FLAGS, "--save-interval-updates", "0", "--validate-interval-updates", "0"]
    trainer = make_trainer(language_data, tmp_path, *flags)
    first = update(trainer, 0)
    before = {name: value.clone() for name, value in trainer.get_model().state_dict().items()}
    stock = trainer.optimizer.backward
    trainer.optimizer.backward = lambda loss: stock(loss * float("inf"))
    assert update(trainer, 1)["loss"] > 0 and trainer.get_num_updates() == 2
    LOOKS[look](trainer)
    assert trainer.get_num_updates() == 1 and trainer.optimizer.scaler.loss_scale == 64
    assert metrics.get_smoothed_values("train_inner")["loss"] == first["loss"]
    assert_equal(trainer.get_model().state_dict(), before)


def clip_as_ours(optimizer: Any, max_norm: float) -> torch.Tensor:
    return clip_without_waiting(optimizer, optimizer.clip_grad_norm, max_norm)


@pytest.mark.parametrize("share", [0.5, 2.0], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("flags", [[], ["--memory-efficient-fp16"]], ids=str)
def test_gradients_are_scaled_as_by_stock(flags: list[str], share: float, language_data: Path, tmp_path: Path) -> None:
    """To the bit, whatever the number of tokens; with several processes it is on the device."""
    optimizer = make_trainer(language_data, tmp_path, *FLAGS, *flags).optimizer
    params = optimizer.fp16_params if hasattr(optimizer, "fp16_params") else optimizer.params
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer._needs_sync = True
    optimizer._multiply_factor = 1.0
    norm = float(optimizer.clip_grad_norm(0.0))
    for tokens in range(1, 200):
        for factor in (1 / 128 / tokens, torch.tensor(1 / 128 / tokens, dtype=torch.float64)):
            scales = []
            for clip in (type(optimizer).clip_grad_norm, clip_as_ours):
                optimizer._multiply_factor = factor.clone() if isinstance(factor, torch.Tensor) else factor
                clip(optimizer, share * norm / 128 / tokens)
                scales.append(torch.as_tensor(1.0 / optimizer._multiply_factor).float())
            assert torch.equal(*scales), (tokens, factor)


def test_an_overflow_in_the_update_that_time_is_up_is_skipped(language_data: Path, tmp_path: Path) -> None:
    """Nothing comes after it with --no-save and --disable-validation."""
    trainer = make_trainer(language_data, tmp_path, *FLAGS, "--stop-time-hours", "1")
    update(trainer, 0)
    trainer._previous_training_time = 3600
    stock = trainer.optimizer.backward
    trainer.optimizer.backward = lambda loss: stock(loss * float("inf"))
    assert update(trainer, 1) is None and trainer.get_num_updates() == 1


class Stateful(CrossEntropyCriterion):
    """Of somebody else, who may count batches."""


def test_only_what_leaves_no_trace_is_deferred(
    language_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(language_data, tmp_path, *FLAGS)
    parts = (trainer.task, trainer.get_model(), trainer.get_criterion())
    scaler = trainer.optimizer.scaler
    assert can_defer_overflows(scaler, *parts)
    assert not can_defer_overflows(object(), *parts)
    assert not can_defer_overflows(scaler, *parts[:2], Stateful(trainer.task, sentence_avg=False))
    assert not can_defer_overflows(scaler, parts[0], nn.Linear(1, 1), parts[2])
    monkeypatch.setattr(type(trainer.task), "optimizer_step", lambda *_: None)
    assert not can_defer_overflows(scaler, *parts)
