"""Updates that do not wait for the device, against stock's: losses, logs, and what happens when one goes wrong."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq import utils
from fairseq.logging import metrics
from fairseq.optim import fp16_optimizer
from fairseq.optim.adam import Adam, FairseqAdam

from tests.plugin.shrunk import EXPERTS
from tests.plugin.trainers import make_batch, make_trainer, update
from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.hooks.training import deferring_trainer as ours
from torchscale_fairseq.hooks.training.padding import padding_mask
from torchscale_fairseq.optim.fused_adam_torch import FusedAdam

FUSED = ["--optimizer", "fused_adam_torch"]
OPTIMIZERS: dict[str, list[str]] = {
    "adadelta": ["--lr", "1"],
    "adafactor": ["--lr", "1e-2", "--scale-parameter"],
    "adagrad": ["--lr", "1e-2"],
    "adam": ["--lr", "3e-3"],
    "adamax": ["--lr", "3e-3"],
    "nag": ["--lr", "3e-3", "--momentum", "0.9"],
    "sgd": ["--lr", "0.03"],
    "fused_adam_torch": ["--lr", "3e-3"],
}
"""All but those that need apex (lamb), deepspeed (cpu_adam) or a configuration of their own (composite). Learning
rates are low: at high ones a factor of 1 + 2e-7 on stock's own gradients moves the losses of bf16 by ten per cent."""
ADAM_OPTIONS = {"lr": [0.1], "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-8, "weight_decay": 0.0}
RELATIVE = {"float32": 1e-6, "bf16": 1e-2, "fp16": 1e-2}
"""Of losses over fifty updates, as promised: rounding of the precision."""


def as_stock(patch: pytest.MonkeyPatch) -> None:
    """Put stock's functions back in the place of ours."""
    mixin = fp16_optimizer._FP16OptimizerMixin
    for name in ("_sync_fp16_grads_to_fp32", "_sync_fp32_params_to_fp16", "zero_grad"):
        patch.setattr(mixin, name, getattr(mixin, name).__wrapped__)
    patch.setattr(utils, "clip_grad_norm_", utils.clip_grad_norm_.__wrapped__)
    patch.setattr(FusedAdam, "supports_step_with_scale", False)
    patch.setattr(ours, "can_wait", lambda *_: False)


def curve(data: Path, folder: Path, updates: int, *flags: str) -> tuple[Any, list[dict[str, Any]]]:
    """The trainer afterwards, and what each update logged."""
    trainer = make_trainer(data, folder, *flags)
    return trainer, [dict(update(trainer, seed % 3)) for seed in range(updates)]


def cases() -> list[Any]:
    """Every optimizer in every precision over fifty updates, which takes minutes; two of them over ten."""
    pairs = [(optimizer, precision, 50) for optimizer in OPTIMIZERS for precision in RELATIVE]
    quick = [("fused_adam_torch", "bf16", 10), ("adam", "fp16", 10)]
    return [*quick, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in pairs)]


@pytest.mark.parametrize(("optimizer", "precision", "updates"), cases())
def test_losses_are_those_of_stock(
    optimizer: str, precision: str, updates: int, language_data: Path, tmp_path: Path
) -> None:
    flags = ["--optimizer", optimizer, *OPTIMIZERS[optimizer]]
    flags += [] if precision == "float32" else [f"--{precision}"]
    flags += ["--fp16-no-flatten-grads"] if optimizer in ("adafactor", "adagrad") else []
    with pytest.MonkeyPatch.context() as patch:
        as_stock(patch)
        _, expected = curve(language_data, tmp_path, updates, *flags)
    _, found = curve(language_data, tmp_path, updates, *flags)
    assert expected[-1]["loss"] < (0.9 if updates == 50 else 1.0) * expected[0]["loss"]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert one["loss"] == pytest.approx(other["loss"], rel=RELATIVE[precision], abs=1e-3)
    assert found[0] == pytest.approx(expected[0], rel=RELATIVE[precision], abs=1e-3)


def break_update(trainer: Any, number: int, how: str) -> None:
    """Make the gradients of one update, counted from 1, go wrong."""
    stock: Callable[..., Any] = trainer.task.train_step

    def train_step(sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, **options: Any) -> Any:
        result = stock(sample, model, criterion, optimizer, update_num, **options)
        if update_num == number - 1:
            chosen = [p for name, p in model.named_parameters() if how in name and p.grad is not None]
            chosen[0].grad.view(-1)[0] = float("nan") if how == "nan" else float("inf")
        return result

    trainer.task.train_step = train_step


def nan_loss(trainer: Any, number: int) -> None:
    """Make the loss of one update NaN."""
    stock: Callable[..., Any] = trainer.optimizer.backward

    def backward(loss: torch.Tensor) -> None:
        stock(loss * float("nan") if trainer.get_num_updates() == number - 1 else loss)

    trainer.optimizer.backward = backward


FAILURES: dict[str, tuple[Callable[[Any], None], list[str]]] = {
    "inf": (lambda trainer: break_update(trainer, 3, "fc1"), ["--bf16"]),
    "inf in one expert": (
        lambda trainer: break_update(trainer, 3, "experts"),
        ["--criterion", "moe_cross_entropy", *EXPERTS],
    ),
    "nan loss": (lambda trainer: nan_loss(trainer, 3), []),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_norm_that_is_not_finite_ends_the_run(failure: str, language_data: Path, tmp_path: Path) -> None:
    """It is seen in the next update, and what is left is what there was before the update that went wrong."""
    fail, flags = FAILURES[failure]
    trainer = make_trainer(language_data, tmp_path, *FUSED, *flags)
    fail(trainer)
    for seed in range(2):
        update(trainer, seed)
    before = {name: value.clone() for name, value in trainer.get_model().state_dict().items()}
    update(trainer, 2)
    assert trainer.get_num_updates() == 3
    with pytest.raises(FloatingPointError, match=r"^gradients are Nan/Inf$"):
        update(trainer, 3)
    assert trainer.get_num_updates() == 2
    crash = load_checkpoint(tmp_path / "crash.pt")
    assert crash["optimizer_history"][-1]["num_updates"] == 2
    for name, value in trainer.get_model().state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(crash["model"][name].to(value.dtype), value)
    states = crash["last_optimizer_state"]["state"]
    assert states and all(state["step"] == 2 for state in states.values())


def test_a_crash_leaves_nothing_where_nothing_is_saved(language_data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(language_data, tmp_path, *FUSED, "--no-save")
    nan_loss(trainer, 1)
    with pytest.raises(FloatingPointError):
        for seed in range(3):
            update(trainer, seed)
    assert list(tmp_path.iterdir()) == []


LOOKS: dict[str, Callable[[Any], Any]] = {
    "checkpoint": lambda trainer: trainer.consolidate_optimizer(),
    "validation": lambda trainer: trainer.valid_step(None),
    "end of epoch": lambda trainer: trainer.lr_step(1),
}


@pytest.mark.parametrize("look", LOOKS)
def test_nothing_that_follows_an_update_misses_it(look: str, language_data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(language_data, tmp_path, *FUSED)
    break_update(trainer, 1, "fc1")
    update(trainer, 0)
    with pytest.raises(FloatingPointError, match="gradients are Nan/Inf"):
        LOOKS[look](trainer)


@pytest.mark.parametrize("flags", [["--log-interval", "1"], ["--max-update", "1"]], ids=["printed", "last"])
def test_an_update_that_is_printed_or_the_last_is_checked_at_once(
    flags: list[str], language_data: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(language_data, tmp_path, *FUSED, *flags)
    break_update(trainer, 1, "fc1")
    with pytest.raises(FloatingPointError, match="gradients are Nan/Inf"):
        update(trainer, 0)


def test_other_optimizers_check_each_update(language_data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(language_data, tmp_path, "--optimizer", "sgd")
    break_update(trainer, 1, "fc1")
    with pytest.raises(FloatingPointError, match="gradients are Nan/Inf"):
        update(trainer, 0)


def test_parameters_without_gradients_count_as_zeros(language_data: Path, tmp_path: Path) -> None:
    """Their averages decay, whatever was in the float32 gradients before."""
    trainer = make_trainer(language_data, tmp_path, *FUSED, "--bf16")
    update(trainer, 0)
    trainer.zero_grad()
    trainer.clip_grad_norm(0.0)
    assert not any(p.grad.any() for p in trainer.optimizer.fp32_params)


@pytest.mark.parametrize("flags", [["--bf16"], ["--fp16"]], ids=str)
def test_one_kernel_measures_gradients_that_lie_together(
    flags: list[str], language_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the float32 copies."""
    trainer = make_trainer(language_data, tmp_path, *FUSED, *flags, "--fp16-no-flatten-grads")
    optimizer, model = trainer.optimizer, trainer.get_model()
    trainer.zero_grad()
    trainer.task.train_step(make_batch(0), model, trainer.get_criterion(), optimizer, 0)
    monkeypatch.delattr(torch, "_foreach_norm")
    found = float(optimizer.clip_grad_norm(0.0))
    squares = sum(p.grad.double().square().sum().item() for p in model.parameters())
    assert found == pytest.approx(optimizer._multiply_factor * squares**0.5, rel=1e-5)


@pytest.mark.parametrize("flags", [[], ["--bf16"], ["--fp16"], ["--memory-efficient-fp16"]], ids=str)
def test_figures_are_fetched_when_somebody_looks(
    flags: list[str], language_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update itself reads nothing but whether the one before was sound."""
    trainer = make_trainer(language_data, tmp_path, *FUSED, *flags)
    update(trainer, 0)  # under --fp16 checked at once, as the loss scale may be too high
    update(trainer, 1)
    fetched: list[torch.Tensor] = []
    with monkeypatch.context() as patch:
        for name in ("item", "__bool__", "__float__"):
            patch.setattr(torch.Tensor, name, noting(fetched, getattr(torch.Tensor, name)))
        returned = update(trainer, 2)
    assert [t for t in fetched if t.dtype.is_floating_point] == [torch.tensor(0.0)]
    assert returned["loss"] > 0 and returned["sample_size"] == 24 and "ppl" not in returned
    assert metrics.get_smoothed_values("train_inner")["gnorm"] > 0


def noting(seen: list[torch.Tensor], stock: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    def fetch(tensor: torch.Tensor) -> Any:
        seen.append(tensor)
        return stock(tensor)

    return fetch


@pytest.mark.parametrize("padding", [0, 2])
def test_padding_is_looked_for_on_the_host(padding: int, language_data: Path, tmp_path: Path) -> None:
    trainer = make_trainer(language_data, tmp_path, *FUSED)
    prepared, _ = trainer._prepare_sample(make_batch(1, padding=padding))
    tokens = prepared["net_input"]["src_tokens"]
    mask = padding_mask(tokens, 1)
    assert mask is None if padding == 0 else torch.equal(mask, tokens == 1)
    given = padding_mask(tokens.clone(), 1)
    assert given is not None and int(given.sum()) == int((tokens == 1).sum())


def test_adam_is_fused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with apex; fairseq asks whether there is a GPU at all."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for flags, kind in (([], FusedAdam), (["--use-old-adam"], Adam)):
        parameters = [torch.nn.Parameter(torch.ones(2))]
        config = SimpleNamespace(**ADAM_OPTIONS, use_old_adam=bool(flags), fp16_adam_stats=False)
        assert type(FairseqAdam(config, parameters).optimizer) is kind
    with pytest.raises(NotImplementedError, match="--fp16-adam-stats needs NVIDIA's apex"):
        FairseqAdam(SimpleNamespace(**ADAM_OPTIONS, use_old_adam=False, fp16_adam_stats=True), parameters)
