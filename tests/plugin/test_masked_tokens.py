"""fairseq's masked_lm in shapes that recur and without waits: against stock's, which the CPU takes otherwise."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

pytest.importorskip("fairseq")

from tests.fairseq_cli import run_gloo
from tests.helpers import assert_close
from tests.plugin.reads import Reads
from tests.plugin.shrunk import EXPERTS, shrunk
from tests.plugin.trainers import MASKED, make_trainer, masked_batch, update
from torchscale_fairseq.hooks.training import masked_tokens
from torchscale_fairseq.hooks.training.masked_tokens import (
    COUNT,
    POSITIONS,
    Count,
    masked_positions,
    room_for,
    with_masked_positions,
)
from torchscale_fairseq.hooks.training.padding import note_padding
from torchscale_fairseq.hooks.training.step_graphs import SEEN, StepGraphs

CPU = torch.device("cpu")
SHARES = {"some": 0.3, "none": 0.0, "all": 1.0}
PRECISIONS = {"float32": [], "bfloat16": ["--bf16"]}
MIXTURE = ["--criterion", "masked_lm_moe_cross_entropy", *EXPERTS]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU takes is taken here."""
    monkeypatch.setattr(masked_tokens, "DEVICES", ("cpu",))


def trainer_of(data: Path, folder: Path, *flags: str) -> Any:
    return make_trainer(data, folder, *MASKED, "--optimizer", "sgd", "--lr", "0.1", *flags, arch="bert_magneto_small")


def gradients(trainer: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """By the criterion, with its results as further entries."""
    trainer.model.zero_grad()
    loss, size, logged = trainer.criterion(trainer.model, batch)
    loss.backward()
    sizes = {"size": torch.tensor(int(size)), "logged size": torch.tensor(int(logged["sample_size"]))}
    return {"loss": loss.detach(), **sizes, **{name: p.grad.clone() for name, p in trainer.model.named_parameters()}}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("arch", ["bert_magneto_small", "mlm_base"])
def test_values_and_gradients_are_those_of_stock(
    arch: str, share: str, language_data: Path, tmp_path: Path, on_cpu: None
) -> None:
    """Also where no token is masked, and the loss is 0."""
    trainer = trainer_of(language_data, tmp_path, *shrunk(arch))
    batch = masked_batch(1, share=SHARES[share], padding=2)
    expected = gradients(trainer, batch)
    found = gradients(trainer, with_masked_positions(batch, trainer.model, trainer.criterion, CPU))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, "float32", name)


def test_a_head_that_a_caller_has_hooked_is_called(language_data: Path, tmp_path: Path, on_cpu: None) -> None:
    trainer = trainer_of(language_data, tmp_path)
    batch = with_masked_positions(masked_batch(1), trainer.model, trainer.criterion, CPU)
    trainer.model.encoder.output_projection.register_forward_hook(lambda _, __, logits: 0 * logits)
    assert not any(value.any() for name, value in gradients(trainer, batch).items() if name.startswith("encoder"))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("flags", [[], MIXTURE, ["--update-freq", "2"]], ids=["dense", "experts", "accumulated"])
def test_updates_are_those_of_stock(
    flags: list[str], precision: str, language_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
        trainer = trainer_of(language_data, tmp_path, *flags, *PRECISIONS[precision])
        logs = [dict(update(trainer, seed, masked_batch)) for seed in range(6)]
        return logs, {name: p.detach().float() for name, p in trainer.model.named_parameters()}

    expected, weights = run()
    monkeypatch.setattr(masked_tokens, "DEVICES", ("cpu",))
    found, ours = run()
    assert [log.keys() for log in found] == [log.keys() for log in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["sample_size"] == other["sample_size"]
        tolerance = "printed" if precision == "float32" else precision
        assert_close(torch.tensor(one["loss"]), torch.tensor(other["loss"]), tolerance)
    for name, value in weights.items():
        assert_close(ours[name], value, precision, name)


class Again:
    """In the place of torch.cuda.CUDAGraph: a replay computes the update again, into the same results."""

    last: Any = None
    """What the last update by Python was: a function that makes it, and its results."""

    def __init__(self) -> None:
        self.update: Any = None

    @classmethod
    def remembering(cls, train_step: Callable[..., Any]) -> Callable[..., Any]:
        def remembered(*arguments: Any) -> Any:
            results = train_step(*arguments)
            cls.last = partial(train_step, *arguments), results, [p.grad for p in arguments[1].parameters()]
            return results

        return remembered

    def replay(self) -> None:
        self.update = self.update or Again.last
        train_step, results, gradients = self.update
        params = list(train_step.args[1].parameters())
        for p in params:
            p.grad = None
        for kept, new in zip(tree_leaves(results), tree_leaves(train_step()), strict=True):
            if isinstance(kept, torch.Tensor):
                kept.data.copy_(new.detach())
        for kept, p in zip(gradients, params, strict=True):
            kept.copy_(p.grad)


def test_replayed_updates_are_those_of_stock(
    language_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of masked tokens differ, and one batch has none."""

    def sizes(trainer: Any) -> list[float]:
        makes = [partial(masked_batch, share=0.0 if number == SEEN + 2 else 0.3) for number in range(SEEN + 5)]
        return [update(trainer, number, make)["sample_size"] for number, make in enumerate(makes)]

    stock = trainer_of(language_data, tmp_path)
    expected = sizes(stock)
    assert len(set(expected)) > 4 and 0 in expected
    monkeypatch.setattr(masked_tokens, "DEVICES", ("cpu",))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Again)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: nullcontext())
    ours = trainer_of(language_data, tmp_path)
    ours.task.train_step = graphs = StepGraphs(Again.remembering(ours.task.train_step))
    assert sizes(ours) == expected
    assert graphs.recordings == 1
    for (name, value), p in zip(stock.model.named_parameters(), ours.model.parameters(), strict=True):
        assert_close(p, value, "float32", name)


def test_two_processes_train_like_stock(language_data: Path, tmp_path: Path) -> None:
    words = [str(language_data), *MASKED, *shrunk("bert_magneto_small"), "--cpu", "--dropout", "0", "--batch-size", "2"]
    words += ["--tokens-per-sample", "8", "--optimizer", "sgd", "--lr", "0.1", "--no-save", "--max-update", "100"]
    words += ["--num-workers", "0", "--required-batch-size-multiple", "1"]
    for devices in ("cpu", "cuda"):
        code = f"""
            from tests.distributed.updates import record
            from torchscale_fairseq.hooks.training import masked_tokens
            masked_tokens.DEVICES = ({devices!r},)
            record({{"masked": {words!r}}}, {str(tmp_path / devices)!r})
        """
        run_gloo(2, code).check()
    found, expected = (torch.load(tmp_path / name)["masked"] for name in ("cpu", "cuda"))
    for name in ("losses", "norms"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-6)


def test_nothing_waits_for_the_device(language_data: Path, tmp_path: Path, on_cpu: None) -> None:
    """In forward and backward; the host knows the sample size too."""
    trainer = trainer_of(language_data, tmp_path)
    batch = with_masked_positions(masked_batch(1), trainer.model, trainer.criterion, CPU)
    note_padding(batch, batch, trainer.task.dictionary.pad())
    trainer.model.train()
    with Reads() as reads:
        loss, size, logged = trainer.criterion(trainer.model, batch)
        trainer.optimizer.backward(loss)
    assert not reads.found
    assert type(size) is Count and type(logged["sample_size"]) is Count


def test_positions_are_those_of_masked_tokens_first() -> None:
    target = torch.full((4, 512), 1)
    target[2, 7], target[0, 500] = 5, 6
    positions, count = masked_positions(target, pad=1)
    assert count == 2 and positions[:2].tolist() == [500, 2 * 512 + 7]
    assert len(set(positions.tolist())) == len(positions) == room_for(2, 4 * 512)
    assert (target.flatten()[positions[2:]] == 1).all(), "the others count nothing"


def test_shapes_recur() -> None:
    """A token is masked with probability 0.15."""
    generator = torch.Generator().manual_seed(1)
    counts = [int((torch.rand(16 * 1024, generator=generator) < 0.15).sum()) for _ in range(100)]
    assert len(set(counts)) > 30
    assert {room_for(count, 16 * 1024) for count in counts} == {2560}


@pytest.mark.parametrize(
    ("count", "tokens", "room"),
    [(0, 16_384, 512), (512, 16_384, 512), (513, 16_384, 1024), (16_384, 16_384, 16_384), (0, 48, 48), (65, 100, 100)],
)
def test_room(count: int, tokens: int, room: int) -> None:
    assert room_for(count, tokens) == room


def test_batches_that_are_left_alone(language_data: Path, tmp_path: Path, on_cpu: None) -> None:
    """Those for a CPU as it is, of another model or criterion, and those that have been here before."""
    masked, batch = trainer_of(language_data, tmp_path), masked_batch(1)
    causal = make_trainer(language_data, tmp_path)
    model, criterion = masked.model, masked.criterion
    once = with_masked_positions(batch, model, criterion, CPU)
    assert once.keys() == {*batch, POSITIONS, COUNT}
    assert with_masked_positions(once, model, criterion, CPU) is once
    assert with_masked_positions(batch, causal.model, criterion, CPU) is batch
    assert with_masked_positions(batch, model, causal.criterion, CPU) is batch
    assert with_masked_positions("DUMMY", model, criterion, CPU) == "DUMMY"
    masked_tokens.DEVICES = ("cuda",)
    assert with_masked_positions(batch, model, criterion, CPU) is batch
