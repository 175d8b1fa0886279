"""Updates replayed as CUDA graphs equal updates that Python starts kernel by kernel."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

import torchscale_fairseq.hooks.training.trainer as trainer_module
from tests.fairseq_cli import tiny_language_data
from tests.helpers import assert_close
from tests.plugin.trainers import MASKED, make_batch, make_trainer, masked_batch, update
from torchscale_fairseq.hooks.training import masked_tokens
from torchscale_fairseq.hooks.training.step_graphs import SEEN, StepGraphs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
FLAGS = ["--compile", "--optimizer", "fused_adam_torch", "--lr", "1e-3"]
EXPERTS = ["--bf16", "--criterion", "moe_cross_entropy", "--moe-freq", "1", "--moe-expert-count", "4"]
LOSS = ["--criterion", "linear_cross_entropy"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_data(tmp_path_factory.mktemp("data"))


def losses(trainer: Any, updates: int, accumulated: int) -> torch.Tensor:
    """Of so many updates, each of so many batches. Every fifth update begins with a batch that has padding."""
    found = []
    for number in range(updates):
        batches = [make_batch(10 * number + i) for i in range(accumulated)]
        if number % 5 == 4:
            batches[0] = make_batch(number, padding=3)
        found.append(trainer.train_step(batches)["loss"])
    return torch.tensor(found)


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        (LOSS, "float32"),
        ([*LOSS, "--dropout", "0.1"], "float32"),
        ([*LOSS, "--bf16"], "bfloat16"),
        ([*LOSS, "--fp16", "--fp16-scale-window", "7"], "float16"),
        (["--bf16"], "bfloat16"),
        (EXPERTS, "bfloat16"),
    ],
    ids=["float32", "dropout", "bf16", "fp16", "cross_entropy", "experts"],
)
def test_losses_equal_those_without_graphs(
    flags: list[str], tolerance: str, accumulated: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, accumulated gradients, shapes that do not recur, and a loss scale that changes."""
    recorded = make_trainer(data, tmp_path, *FLAGS, *flags, device="cuda")
    graphs = recorded.task.train_step
    assert isinstance(graphs, StepGraphs)
    found = losses(recorded, 30, accumulated)
    assert graphs.recordings >= min(accumulated, 2)
    monkeypatch.setattr(trainer_module, "can_record", lambda *_: False)
    usual = make_trainer(data, tmp_path, *FLAGS, *flags, device="cuda")
    assert not isinstance(usual.task.train_step, StepGraphs)
    assert_close(found, losses(usual, 30, accumulated), tolerance)


PRECISIONS = {"printed": [], "bfloat16": ["--bf16"], "float16": ["--fp16"]}
"""Flags by the tolerance of the losses that are logged."""


@pytest.mark.parametrize("dropout", ["0", "0.1"])
@pytest.mark.parametrize("tolerance", PRECISIONS)
def test_masked_losses_equal_those_of_stock(
    tolerance: str, dropout: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose numbers of masked tokens differ, also where no token is masked."""
    flags = [*FLAGS, *MASKED, *PRECISIONS[tolerance], "--dropout", dropout, "--attention-dropout", dropout]

    def train() -> tuple[Any, torch.Tensor]:
        trainer = make_trainer(data, tmp_path, *flags, arch="bert_magneto_small", device="cuda")
        makes = [partial(masked_batch, share=0.0 if number % 7 == 6 else 0.3) for number in range(20)]
        logs = [update(trainer, number, make) for number, make in enumerate(makes)]
        return trainer, torch.tensor([log["loss"] for log in logs if log["sample_size"]])

    recorded, found = train()
    assert recorded.task.train_step.recordings >= 1
    monkeypatch.setattr(trainer_module, "can_record", lambda *_: False)
    monkeypatch.setattr(masked_tokens, "DEVICES", ())
    _, expected = train()
    assert len(found) == len(expected) == 18
    assert_close(found, expected, tolerance)


def test_a_masked_update_does_not_wait(data: Path, tmp_path: Path) -> None:
    """Forward and backward as usual."""
    trainer = make_trainer(data, tmp_path, *MASKED, "--bf16", arch="bert_magneto_small", device="cuda")
    sample, _ = trainer._prepare_sample(masked_batch(1))
    trainer.model.train()
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            loss, _, _ = trainer.criterion(trainer.model, sample)
            trainer.optimizer.backward(loss)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_nan_is_reported_at_its_update(data: Path, tmp_path: Path) -> None:
    """One update later at most, as the norm is read then; the weights are those before it."""
    trainer = make_trainer(data, tmp_path, *FLAGS, *LOSS, device="cuda")
    losses(trainer, SEEN + 3, 1)
    assert trainer.task.train_step.recordings == 1
    with torch.no_grad():
        trainer.model.decoder.layers[0].ffn.fc1.bias[0] = torch.nan
    before = trainer.model.decoder.layers[0].ffn.fc2.weight.clone()
    updates = trainer.get_num_updates()
    with pytest.raises(FloatingPointError, match="Nan/Inf"):
        losses(trainer, 2, 1)
    assert trainer.get_num_updates() == updates
    assert torch.equal(trainer.model.decoder.layers[0].ffn.fc2.weight, before)
