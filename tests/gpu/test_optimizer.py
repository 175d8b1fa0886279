"""--optimizer fused_adam_torch, and what a run says of itself, on a GPU."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.optim.adam import Adam
from torch import nn

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.fairseq_cli import FEW_UPDATES, run_fairseq, tiny_language_data
from tests.helpers import assert_close
from tests.plugin import trainers
from tests.tools.tensorboard_logs import scalars, total
from torchscale_fairseq.optim import fused_adam_torch
from torchscale_fairseq.optim.fused_adam_torch import KERNELS, FusedAdam

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
OPTIONS: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-3, "weight_decay": 0.1}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_updates_are_those_of_adam(dtype: torch.dtype, kernel: str) -> None:
    """The second parameter gets a gradient every other time, the first one transposed; states go over midway."""
    generator = torch.Generator("cuda").manual_seed(1)
    shapes = [(70, 50), (11,), (3, 4, 2)]
    start = [torch.randn(s, generator=generator, device="cuda").to(dtype) for s in shapes]
    sides = [[nn.Parameter(p.clone()) for p in start] for _ in range(2)]
    expected, found = sides
    stock, ours = Adam(expected, **OPTIONS), FusedAdam(found, kernel=kernel, **OPTIONS)
    for update in range(6):
        for i in range(len(shapes)):
            grad = torch.randn(shapes[i], generator=generator, device="cuda").to(dtype)
            grad = grad.t().contiguous().t() if i == 0 else grad
            for side in sides:
                side[i].grad = None if i == 1 and update % 2 else grad.clone()
        stock.step()
        ours.step()
    tolerance = {torch.float64: "optimizer", torch.float32: "float32"}.get(dtype, str(dtype).split(".")[1])
    for p, q in zip(found, expected, strict=True):
        assert_close(p.detach(), q.detach(), tolerance)
        assert ours.state[p]["step"] == stock.state[q]["step"]
        assert_close(ours.state[p]["exp_avg_sq"], stock.state[q]["exp_avg_sq"], "float32")


@pytest.mark.parametrize("flags", [["--bf16"], ["--fp16"], ["--fp16", "--fp16-no-flatten-grads"]], ids=str)
def test_losses_without_gradients_in_float32(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reads gradients in half precision, and writes the parameters that it updates the copies of."""
    pytest.importorskip("triton")
    data, flags = tiny_language_data(tmp_path), ["--optimizer", "adam", "--lr", "3e-3", *flags]

    def losses() -> tuple[Any, torch.Tensor]:
        trainer = trainers.make_trainer(data, tmp_path, *flags, device="cuda")
        return trainer.optimizer.optimizer, torch.tensor(
            [trainers.update(trainer, seed % 3)["loss"] for seed in range(20)]
        )

    optimizer, found = losses()
    assert optimizer.halves
    monkeypatch.setattr(fused_adam_torch, "DEVICES", ())
    usual, expected = losses()
    assert not usual.halves
    assert_close(found, expected, "bfloat16" if "--bf16" in flags else "float16")


@pytest.mark.parametrize("precision", [["--fp16"], ["--bf16", "--memory-efficient-bf16"], ["--amp"], []], ids=str)
def test_trains_and_says_how(precision: list[str], tmp_path: Path) -> None:
    """Norms per layer add up to fairseq's; utilisation is relative to the GPU's peak; adam goes on from it."""
    data = tiny_language_data(tmp_path)
    words = [data, "--task", "language_modeling", "--arch", "gpt_magneto_small"]
    words += [*FEW_UPDATES, *precision, "--tokens-per-sample", 32, "--save-dir", tmp_path, "--lr", "1e-3"]
    words += ["--tensorboard-logdir", tmp_path / "tensorboard", "--log-norms-interval", 4, "--peak-tflops", 100]
    cuda = {"CUDA_VISIBLE_DEVICES": "0"}
    done = run_fairseq("train", [*words, "--optimizer", "fused_adam_torch"], environment=cuda).check()
    assert "is relative to 100 TFLOP/s" in done.output
    norms, stock = scalars(tmp_path, "norms"), scalars(tmp_path, "train_inner")
    assert total(norms, "gradient", 4) == pytest.approx(stock["gnorm"][4], rel=1e-2)
    assert 0 < total(norms, "update", 4) < 1e-3 * math.sqrt(1e8)
    resumed = run_fairseq("train", [*words, "--max-update", 8], environment=cuda).check()
    assert "@ 4 updates" in resumed.output
