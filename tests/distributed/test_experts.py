"""Experts that several gloo processes share out: training, clipping, checkpoints."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from tests.checkpoints import assert_same_weights, weights
from tests.distributed.expert_training import ADAM, SGD, assert_same_state, train
from tests.fairseq_cli import run_fairseq, run_processes
from tests.printed import assert_logged_alike, assert_printed_alike, printed
from torchscale_fairseq.checkpoints.reading import load_checkpoint

OPTIMIZERS = {"sgd": SGD, "adam": ADAM}
RESUMED = {"sgd": 1e-6, "adam": 0.05 * 1e-2}
"""Largest difference of a weight ten updates after a resumption; for Adam, relative to its learning rate."""
ONE_EPOCH = 6
"""Updates; the last has one batch, so that all processes but the first get a dummy."""


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An epoch in one process."""
    folder = tmp_path_factory.mktemp("alone")
    done = train(1, data, folder, *SGD, updates=ONE_EPOCH).check()
    (folder / "output.txt").write_text(done.output)
    return folder


@pytest.mark.parametrize(
    ("processes", "backend"),
    [
        (2, "pytorch_ddp"),
        (4, "legacy_ddp"),
        pytest.param(2, "legacy_ddp", marks=pytest.mark.slow),
        pytest.param(4, "pytorch_ddp", marks=pytest.mark.slow),
    ],
)
def test_gradients_clipping_and_updates_equal_one_process(
    processes: int, backend: str, data: Path, alone: Path, tmp_path: Path
) -> None:
    done = train(processes, data, tmp_path, *SGD, "--ddp-backend", backend, updates=ONE_EPOCH).check()
    assert_same_weights(alone, tmp_path, 1e-6)
    assert len(printed(done.output, "gnorm", "train_inner")) == ONE_EPOCH
    assert_logged_alike(done.output, (alone / "output.txt").read_text(), ["gnorm"])


def test_experts_held_twice_equal_one_process(data: Path, tmp_path: Path) -> None:
    two_experts = [*SGD, "--moe-expert-count", "2"]
    train(1, data, tmp_path / "one", *two_experts).check()
    for backend in ("pytorch_ddp", "legacy_ddp"):
        train(4, data, tmp_path / backend, *two_experts, "--ddp-backend", backend).check()
        assert_same_weights(tmp_path / "one", tmp_path / backend, 1e-6)


Stopped = Callable[[int, str], Path]


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """A run of so many processes by an optimizer after three updates."""

    @cache
    def make(processes: int, optimizer: str) -> Path:
        folder = tmp_path_factory.mktemp(f"stopped-{processes}-{optimizer}")
        train(processes, data, folder, *OPTIMIZERS[optimizer]).check()
        return folder

    return make


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """One process that goes on to the end."""

    @cache
    def make(optimizer: str) -> Path:
        folder = tmp_path_factory.mktemp(f"uninterrupted-{optimizer}")
        train(1, data, folder, *OPTIMIZERS[optimizer], updates=3 + 10).check()
        return folder

    return make


def resumptions() -> Iterator[Any]:
    """By whom a checkpoint is written and resumed. Quick tests are a split, a merge, and one process for two."""
    quick = {(1, 4, "sgd"), (4, 2, "adam"), (2, 1, "adam")}
    for case in product((1, 2, 4), (1, 2, 4), ("sgd", "adam")):
        yield pytest.param(*case, marks=() if case in quick else pytest.mark.slow)


@pytest.mark.parametrize(("wrote", "resumes", "optimizer"), resumptions())
def test_resumes_in_any_number_of_processes(
    wrote: int, resumes: int, optimizer: str, data: Path, stopped: Stopped, uninterrupted: Any, tmp_path: Path
) -> None:
    checkpoint = stopped(wrote, optimizer) / "checkpoint_last.pt"
    done = train(resumes, data, tmp_path, *OPTIMIZERS[optimizer], "--restore-file", checkpoint, updates=3 + 10).check()
    assert "@ 3 updates" in done.output
    expected, found = weights(uninterrupted(optimizer)), weights(tmp_path)
    for name, value in expected.items():
        if not name.endswith("k_proj.bias"):  # attention does not depend on it: Adam magnifies rounding alone
            torch.testing.assert_close(found[name], value, atol=RESUMED[optimizer], rtol=0, msg=name)


def test_checkpoint_is_what_one_process_writes(data: Path, alone: Path, tmp_path: Path) -> None:
    train(1, data, tmp_path / "one", *ADAM, "--store-ema", "--ema-fp32").check()
    train(2, data, tmp_path / "two", *ADAM, "--store-ema", "--ema-fp32").check()
    one, two = (load_checkpoint(tmp_path / name / "checkpoint_last.pt") for name in ("one", "two"))
    assert list(one["model"]) == list(two["model"])
    for entry in ("ema", "ema_fp32_params"):
        ours, expected = two["extra_state"][entry], one["extra_state"][entry]
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(ours[name], value, atol=1e-3, rtol=0, msg=name)
    assert_same_state(two["last_optimizer_state"], one["last_optimizer_state"])


def test_a_moved_average_goes_on(data: Path, tmp_path: Path) -> None:
    flags = [*SGD, "--store-ema", "--ema-fp32"]
    train(2, data, tmp_path / "a", *flags).check()
    train(4, data, tmp_path / "b", *flags, "--restore-file", tmp_path / "a/checkpoint_last.pt", updates=6).check()
    train(1, data, tmp_path / "c", *flags, "--restore-file", tmp_path / "a/checkpoint_last.pt", updates=6).check()
    b, c = (load_checkpoint(tmp_path / name / "checkpoint_last.pt")["extra_state"] for name in ("b", "c"))
    for entry in ("ema", "ema_fp32_params"):
        for name, value in c[entry].items():
            torch.testing.assert_close(b[entry][name], value, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize(
    "precision", ["--fp16", "--memory-efficient-fp16", pytest.param("--bf16", marks=pytest.mark.slow)]
)
def test_low_precision_keeps_processes_together(precision: str, data: Path, tmp_path: Path) -> None:
    """What is not an expert's stays the same in both; flattened gradients, say, would be clipped by two norms."""
    before = """
import sys, torch
from fairseq import trainer
step = trainer.Trainer.train_step
def compared(self, *arguments, **keywords):
    result = step(self, *arguments, **keywords)
    shared = torch.cat([p.data.float().flatten() for p in self.model.parameters() if not hasattr(p, "expert")])
    largest = shared.clone()
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    difference = (largest - shared).abs().max().item()
    sys.stdout.write(f"shared parameters differ by {difference}\\n")  # at once: two processes write
    return result
trainer.Trainer.train_step = compared
"""
    flags = [*ADAM, precision, "--moe-gating-use-fp32"]
    done = train(2, data, tmp_path, *flags, updates=6, before=before).check()
    assert re.findall(r"differ by (\S+)", done.output) == ["0.0"] * 12


def test_generates_and_validates_in_one_process(data: Path, tmp_path: Path) -> None:
    train(4, data, tmp_path, *ADAM).check()
    path = [
        "--path",
        tmp_path / "checkpoint_last.pt",
        "--cpu",
        "--batch-size",
        "11",
        "--required-batch-size-multiple",
        1,
    ]
    assert "Generate test" in run_fairseq("generate", [data, *path, "--beam", "2"]).check().output
    asked = [data, *path[:3], "--beam", "2", "-s", "en", "-t", "de"]
    answered = run_fairseq("interactive", asked, stdin="w1 w2 w3\nw4\n").check().output
    assert sum(line.startswith("H-") for line in answered.splitlines()) == 2
    alone = run_fairseq("validate", [data, *path, "--task", "translation"]).check().output
    several = run_processes(2, "validate", [data, *path, "--task", "translation"]).check().output
    assert_printed_alike(printed(several, "loss")[:1], printed(alone, "loss")[:1])


def test_keeps_the_same_checkpoints_as_one_process(data: Path, tmp_path: Path) -> None:
    flags = [*SGD, "--save-interval-updates", "1", "--keep-interval-updates", "1", "--keep-best-checkpoints", "1"]
    for processes in (1, 2):
        train(processes, data, tmp_path / str(processes), *flags, "--no-epoch-checkpoints").check()
    one, two = (sorted(path.name for path in (tmp_path / name).glob("*.pt")) for name in "12")
    assert one == two and "checkpoint_last.pt" in one and len(one) >= 4


def test_fine_tunes_in_another_number_of_processes(data: Path, alone: Path, tmp_path: Path) -> None:
    flags = [*SGD, "--finetune-from-model", alone / "checkpoint_last.pt"]
    for processes in (1, 2):
        train(processes, data, tmp_path / str(processes), *flags).check()
    assert_same_weights(tmp_path / "1", tmp_path / "2", 1e-6)


def test_no_checkpoint_to_write_does_not_hang(data: Path, tmp_path: Path) -> None:
    flags = [*SGD, "--no-last-checkpoints", "--no-epoch-checkpoints", "--disable-validation"]
    train(2, data, tmp_path, *flags, "--save-interval-updates", "2").check()
    assert [path.name for path in tmp_path.glob("*.pt")] == ["checkpoint_1_2.pt"]


def test_weights_differ_between_experts(alone: Path) -> None:
    first, second = (weights(alone)[f"encoder.layers.0.moe_layer.experts.{i}.fc1.weight"] for i in (0, 1))
    assert not torch.equal(first, second)
