"""--optimizer fused_adam_torch against fairseq's adam."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("fairseq")

from fairseq.optim.adam import Adam

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.checkpoints import assert_same_weights
from tests.core.models import decoder, tokens
from tests.distributed.expert_training import train as train_experts
from tests.fairseq_cli import FEW_UPDATES, Finished, run_fairseq, tiny_language_data, tiny_translation_data
from tests.helpers import assert_close
from tests.plugin.shrunk import EXPERTS, shrunk
from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.optim import fused_adam_torch
from torchscale_fairseq.optim.fused_adam_torch import KERNELS, FusedAdam

OPTIONS: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-3, "weight_decay": 0.1}
SHAPES = [(7, 5), (11,), (3, 4, 2)]
Make = Callable[..., torch.optim.Optimizer]


def run(make: Make, dtype: torch.dtype, updates: int = 6) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """Updates with random gradients. The second parameter gets one every other time, the first one transposed."""
    generator = torch.Generator().manual_seed(1)
    params: list[Tensor] = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    optimizer = make(params, **OPTIONS)
    for update in range(updates):
        for i, p in enumerate(params):
            grad = torch.randn(p.shape, generator=generator).to(dtype)
            p.grad = grad.t().contiguous().t() if i == 0 else None if i == 1 and update % 2 else grad
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_updates_are_those_of_adam(dtype: torch.dtype, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 to 1e-12 with an epsilon that counts; in half precision, computed in float32, to a rounding."""
    monkeypatch.setattr(fused_adam_torch, "HALF_AT_ONCE", 40)
    expected, reference = run(Adam, dtype)
    params, optimizer = run(lambda p, **options: FusedAdam(p, kernel=kernel, **options), dtype)
    tolerance = {torch.float64: "optimizer", torch.float32: "parity_exact"}.get(dtype, str(dtype).split(".")[1])
    for ours, theirs in zip(params, expected, strict=True):
        assert_close(ours.detach(), theirs.detach(), tolerance)
        states, stock = optimizer.state[ours], reference.state[theirs]
        assert states.keys() == stock.keys() and states["step"] == stock["step"] and type(states["step"]) is int
        for name in ("exp_avg", "exp_avg_sq"):
            assert states[name].dtype == stock[name].dtype
            assert_close(states[name], stock[name], "optimizer" if dtype == torch.float64 else "parity_exact")


def losses(make: Make, updates: int) -> Tensor:
    """Of a small decoder that learns to predict random texts, in float32."""
    torch.manual_seed(1)
    model = decoder()
    optimizer = make(model.parameters(), lr=3e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    text = tokens(4, 17)
    found = []
    for _ in range(updates):
        loss = F.cross_entropy(model(text[:, :-1])[0].flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


@pytest.mark.parametrize("kernel", KERNELS)
def test_losses_are_those_of_adam(kernel: str) -> None:
    expected, found = losses(Adam, 100), losses(lambda p, **options: FusedAdam(p, kernel=kernel, **options), 100)
    assert expected[-1] < expected[0] / 2
    assert (found - expected)[:10].abs().max() < 1e-6
    assert (found - expected).abs().max() < 1e-3


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="fused_adam_torch does not take sparse gradients"):
        FusedAdam(embedding.parameters()).step()


@pytest.mark.parametrize(("first", "second"), [(Adam, FusedAdam), (FusedAdam, Adam)], ids=["from_adam", "to_adam"])
def test_states_go_from_one_to_the_other(first: Make, second: Make) -> None:
    params, optimizer = run(first, torch.float64)
    copies = copy.deepcopy(params)
    other = second(copies, **OPTIONS)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(params, copies, strict=True):
        p.grad = q.grad = torch.ones_like(p)
    optimizer.step()
    other.step()
    for p, q in zip(params, copies, strict=True):
        assert_close(q.detach(), p.detach(), "optimizer")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_data(tmp_path_factory.mktemp("optimizer-data"))


def train(data: Path, folder: Path, optimizer: str, *flags: object, updates: int) -> Finished:
    arguments = [data, *shrunk("gpt_magneto_small"), "--task", "language_modeling", "--tokens-per-sample", "16"]
    arguments += [*FEW_UPDATES, "--optimizer", optimizer, "--max-update", updates, "--save-dir", folder, "--cpu"]
    schedule = ["--lr-scheduler", "inverse_sqrt", "--warmup-updates", "4", "--adam-eps", "1e-3", "--clip-norm", "1"]
    arguments += [*schedule, "--disable-validation", "--batch-size", "4"]
    return run_fairseq("train", [*arguments, *flags])


@pytest.mark.parametrize(
    "flags",
    [
        ["--fp16"],
        ["--memory-efficient-bf16", "--bf16", "--adam-kernel", "foreach"],
        ["--criterion", "moe_cross_entropy", *EXPERTS],
    ],
    ids=["fp16", "memory_efficient_bf16", "experts"],
)
def test_runs_go_on_with_the_other_optimizer(flags: list[str], data: Path, tmp_path: Path) -> None:
    """Six updates by adam, and three by it after three by ours: the same weights."""
    common = [flag for flag in flags if flag not in ("--adam-kernel", "foreach")]
    train(data, tmp_path / "a", "adam", *common, updates=6).check()
    train(data, tmp_path / "b", "fused_adam_torch", *flags, updates=3).check()
    done = train(data, tmp_path / "b", "adam", *common, updates=6).check()
    assert "Loaded checkpoint" in done.output
    expected, found = (load_checkpoint(tmp_path / x / "checkpoint_last.pt") for x in "ab")
    assert found["optimizer_history"][-1]["num_updates"] == 6
    tolerance = "float16" if "--fp16" in flags else "bfloat16" if "--bf16" in flags else "float32"
    for name, value in expected["model"].items():
        assert_close(found["model"][name], value, tolerance, name)
    states = found["last_optimizer_state"]["state"]
    assert all(set(state) == {"step", "exp_avg", "exp_avg_sq"} and state["step"] == 6 for state in states.values())


def test_states_of_experts_in_two_processes_go_to_adam_in_one(tmp_path: Path) -> None:
    data, adam = tiny_translation_data(tmp_path), ["--lr", "1e-2", "--adam-eps", "1e-3"]
    train_experts(1, data, tmp_path / "a", "--optimizer", "adam", *adam, updates=5).check()
    train_experts(2, data, tmp_path / "b", "--optimizer", "fused_adam_torch", *adam, updates=3).check()
    train_experts(1, data, tmp_path / "b", "--optimizer", "adam", *adam, updates=5).check()
    assert_same_weights(tmp_path / "a", tmp_path / "b", 1e-5)
