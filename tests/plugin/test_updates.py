"""Updates that do not wait for the device, against stock's: losses, logs, and what happens when one goes wrong."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.logging import metrics
from fairseq.optim.adam import Adam, FairseqAdam

from tests.helpers import assert_close
from tests.plugin.halves import update_halves
from tests.plugin.shrunk import EXPERTS
from tests.plugin.stock_updates import OPTIMIZERS, RELATIVE, as_stock, assert_losses_of_stock, logged
from tests.plugin.trainers import make_batch, make_trainer, update
from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.hooks.training.mixed_precision import parameters_in_float32
from torchscale_fairseq.hooks.training.padding import padding_mask
from torchscale_fairseq.optim import fused_adam_torch
from torchscale_fairseq.optim.fused_adam_torch import FusedAdam

FUSED = ["--optimizer", "fused_adam_torch"]
ADAM_OPTIONS = {"lr": [0.1], "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-8, "weight_decay": 0.0}


def cases() -> list[Any]:
    """Every optimizer in every precision over fifty updates, which takes minutes; two of them over ten."""
    pairs = [(optimizer, precision, 50) for optimizer in OPTIMIZERS for precision in RELATIVE]
    quick = [("fused_adam_torch", "bf16", 10), ("adam", "fp16", 10)]
    return [*quick, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in pairs)]


@pytest.mark.parametrize(("optimizer", "precision", "updates"), cases())
def test_losses_are_those_of_stock(
    optimizer: str, precision: str, updates: int, language_data: Path, tmp_path: Path
) -> None:
    assert_losses_of_stock(optimizer, precision, updates, language_data, tmp_path)


@pytest.fixture
def from_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer reads gradients in half precision, as on a GPU."""
    pytest.importorskip("triton")
    monkeypatch.setattr(fused_adam_torch, "DEVICES", ("cpu",))
    monkeypatch.setattr(fused_adam_torch, "update_from_halves", update_halves)


@pytest.mark.parametrize("flags", [["--bf16"], ["--fp16"], ["--fp16", "--fp16-no-flatten-grads"]], ids=str)
def test_losses_without_gradients_in_float32(
    flags: list[str], from_halves: None, language_data: Path, tmp_path: Path
) -> None:
    flags = [*FUSED, "--lr", "3e-3", "--weight-decay", "0.1", *flags]
    with pytest.MonkeyPatch.context() as patch:
        as_stock(patch)
        expected = logged(language_data, tmp_path, 10, *flags, device="cpu")
    norm = metrics.get_smoothed_values("train_inner")["gnorm"]
    trainer = make_trainer(language_data, tmp_path, *flags)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(torch, "_foreach_copy_")  # which makes gradients in float32, and parameters of their copies
        found = [dict(update(trainer, seed % 3)) for seed in range(10)]
        trainer.check_last_update()  # which logs its norm
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2, abs=1e-3)
    assert metrics.get_smoothed_values("train_inner")["gnorm"] == pytest.approx(norm, rel=1e-2)
    assert flags[-1] == "--fp16" or all(copy.grad is None for copy in trainer.optimizer.fp32_params)
    for p, copy in zip(trainer.optimizer.fp16_params, parameters_in_float32(trainer.optimizer), strict=True):
        assert torch.equal(p, copy.to(p.dtype))


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


def test_a_parameter_without_gradient_takes_the_copies(from_halves: None, language_data: Path, tmp_path: Path) -> None:
    """Its averages decay as with a gradient of zeros, and the others are updated as ever."""
    trainer = make_trainer(language_data, tmp_path, *FUSED, "--bf16")
    update(trainer, 0)
    assert trainer.optimizer.optimizer.halves
    stock, lost = trainer.task.train_step, next(iter(trainer.optimizer.fp16_params))

    def train_step(*arguments: Any, **options: Any) -> Any:
        result = stock(*arguments, **options)
        lost.grad = None
        return result

    trainer.task.train_step = train_step
    averages = [state["exp_avg"].clone() for state in trainer.optimizer.optimizer.state.values()]
    update(trainer, 1)
    assert not trainer.optimizer.optimizer.halves
    states = trainer.optimizer.optimizer.state
    assert_close(states[trainer.optimizer.fp32_params[0]]["exp_avg"], averages[0] * 0.9, "float32")
    assert all(state["step"] == 2 for state in states.values())


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
    ends_at_the_norm(failure, language_data, tmp_path)


def test_a_norm_of_halves_that_is_not_finite_ends_the_run(
    from_halves: None, language_data: Path, tmp_path: Path
) -> None:
    ends_at_the_norm("inf", language_data, tmp_path)


def ends_at_the_norm(failure: str, language_data: Path, tmp_path: Path) -> None:
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
