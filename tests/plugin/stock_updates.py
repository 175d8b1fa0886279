"""Whole trainings with stock's updates in the place of ours, and losses of both compared."""

from pathlib import Path
from typing import Any

import pytest
from fairseq import utils
from fairseq.optim import fp16_optimizer

from tests.plugin.trainers import make_trainer, update
from torchscale_fairseq.hooks.training import deferring_trainer, trainer
from torchscale_fairseq.optim.fused_adam_torch import FusedAdam

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
RELATIVE = {"float32": 1e-6, "bf16": 1e-2, "fp16": 1e-2}
"""Of losses over fifty updates, as promised: rounding of the precision."""


def as_stock(patch: pytest.MonkeyPatch) -> None:
    """Put stock's functions back in the place of ours."""
    mixin = fp16_optimizer._FP16OptimizerMixin
    for name in ("_sync_fp16_grads_to_fp32", "_sync_fp32_params_to_fp16", "clip_grad_norm", "zero_grad"):
        patch.setattr(mixin, name, getattr(mixin, name).__wrapped__)
    patch.setattr(utils, "clip_grad_norm_", utils.clip_grad_norm_.__wrapped__)
    patch.setattr(FusedAdam, "supports_step_with_scale", False)
    patch.setattr(deferring_trainer, "can_wait", lambda *_: False)
    patch.setattr(trainer, "can_record", lambda *_: False)


def logged(data: Path, folder: Path, updates: int, *flags: str, device: str) -> list[dict[str, Any]]:
    """What each update logged."""
    trained = make_trainer(data, folder, *flags, device=device)
    return [dict(update(trained, seed % 3)) for seed in range(updates)]


def assert_losses_of_stock(
    optimizer: str, precision: str, updates: int, data: Path, folder: Path, *flags: str, device: str = "cpu"
) -> None:
    """Train in both ways, and compare what was logged."""
    flags = ("--optimizer", optimizer, *OPTIMIZERS[optimizer], *flags)
    flags += () if precision == "float32" else (f"--{precision}",)
    flags += ("--fp16-no-flatten-grads",) if optimizer in ("adafactor", "adagrad") else ()
    with pytest.MonkeyPatch.context() as patch:
        as_stock(patch)
        expected = logged(data, folder, updates, *flags, device=device)
    found = logged(data, folder, updates, *flags, device=device)
    assert expected[-1]["loss"] < (0.9 if updates == 50 else 1.0) * expected[0]["loss"]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert one["loss"] == pytest.approx(other["loss"], rel=RELATIVE[precision], abs=1e-3)
    assert found[0] == pytest.approx(expected[0], rel=RELATIVE[precision], abs=1e-3)
