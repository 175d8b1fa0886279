"""Experts that several gloo processes share out: training, clipping, checkpoints."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from tests.fairseq_cli import Finished, run_fairseq, run_processes, tiny_translation_data
from tests.plugin.shrunk import shrunk
from tests.plugin.test_translation_cli import COMMON, assert_same_weights, weights
from torchscale_fairseq.hooks.checkpoints import load_checkpoint

ARCH = "mt_xmoe_small"
CRITERION = ["--criterion", "moe_label_smoothed_cross_entropy", "--label-smoothing", "0.1"]
SGD = ["--optimizer", "sgd", "--lr", "0.1"]
ADAM = ["--optimizer", "adam", "--lr", "1e-2"]
BATCHES = 4
"""Batches that make an update, over processes and --update-freq."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_translation_data(tmp_path_factory.mktemp("expert-data"))


def train(processes: int, data: Path, folder: Path, *flags: object, updates: int = 3) -> Finished:
    """Train with batches of 4 sentences, BATCHES of them an update."""
    arguments = [data, *shrunk(ARCH), *COMMON, *CRITERION, "--dropout", "0", "--batch-size", "4", "--clip-norm", "0.5"]
    arguments += ["--update-freq", BATCHES // processes, "--moe-gate-loss-wt", "0.1", "--max-update", updates]
    arguments += ["--save-dir", folder, *flags]
    if processes == 1:
        return run_fairseq("train", arguments)
    return run_processes(processes, "train", arguments)


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three updates in one process."""
    folder = tmp_path_factory.mktemp("alone")
    done = train(1, data, folder, *SGD).check()
    (folder / "output.txt").write_text(done.output)
    return folder


def norms(output: str) -> list[str]:
    """Norm of the gradients at each update, as the console says it."""
    found = re.findall(r"gnorm=([\d.]+)", output)
    assert len(found) == 3
    return found


@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
@pytest.mark.parametrize("processes", [2, 4])
def test_gradients_clipping_and_updates_equal_one_process(
    processes: int, backend: str, data: Path, alone: Path, tmp_path: Path
) -> None:
    done = train(processes, data, tmp_path, *SGD, "--ddp-backend", backend).check()
    assert_same_weights(alone, tmp_path, 1e-6)
    assert norms(done.output) == norms((alone / "output.txt").read_text())


@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
def test_experts_held_twice_equal_one_process(backend: str, data: Path, tmp_path: Path) -> None:
    two_experts = [*SGD, "--moe-expert-count", "2"]
    train(1, data, tmp_path / "one", *two_experts).check()
    train(4, data, tmp_path / "four", *two_experts, "--ddp-backend", backend).check()
    assert_same_weights(tmp_path / "one", tmp_path / "four", 1e-6)


@pytest.mark.parametrize(("wrote", "resumes"), [(1, 2), (2, 1), (2, 4), (4, 2), (2, 2)])
@pytest.mark.parametrize(("optimizer", "atol"), [(SGD, 1e-6), (ADAM, 0.05 * 1e-2)], ids=["sgd", "adam"])
def test_resumes_in_another_number_of_processes(
    wrote: int, resumes: int, optimizer: list[str], atol: float, data: Path, tmp_path: Path
) -> None:
    train(wrote, data, tmp_path / "a", *optimizer).check()
    train(resumes, data, tmp_path / "b", *optimizer, "--restore-file", tmp_path / "a/checkpoint_last.pt", updates=13)
    train(wrote, data, tmp_path / "a", *optimizer, updates=13).check()
    expected, found = weights(tmp_path / "a"), weights(tmp_path / "b")
    for name, value in expected.items():
        if not name.endswith("k_proj.bias"):  # attention does not depend on it: Adam magnifies rounding alone
            torch.testing.assert_close(found[name], value, atol=atol, rtol=0, msg=name)


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


def assert_same_state(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual["state"].keys() == expected["state"].keys()
    for index, state in expected["state"].items():
        for name, value in state.items():
            if torch.is_tensor(value):
                assert actual["state"][index][name].shape == value.shape, (index, name)
                torch.testing.assert_close(actual["state"][index][name], value, atol=1e-3, rtol=1e-2)


def test_a_moved_average_goes_on(data: Path, tmp_path: Path) -> None:
    flags = [*SGD, "--store-ema", "--ema-fp32"]
    train(2, data, tmp_path / "a", *flags).check()
    train(4, data, tmp_path / "b", *flags, "--restore-file", tmp_path / "a/checkpoint_last.pt", updates=6).check()
    train(1, data, tmp_path / "c", *flags, "--restore-file", tmp_path / "a/checkpoint_last.pt", updates=6).check()
    b, c = (load_checkpoint(tmp_path / name / "checkpoint_last.pt")["extra_state"] for name in ("b", "c"))
    for entry in ("ema", "ema_fp32_params"):
        for name, value in c[entry].items():
            torch.testing.assert_close(b[entry][name], value, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("precision", ["--fp16", "--memory-efficient-fp16", "--bf16"])
def test_low_precision_keeps_processes_together(precision: str, data: Path, tmp_path: Path) -> None:
    done = train(2, data, tmp_path, *ADAM, precision, "--moe-gating-use-fp32", updates=6).check()
    assert "num_updates=6" in done.output.replace("num_updates 6", "num_updates=6")


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
    alone = run_fairseq("validate", [data, *path, "--task", "translation"]).check().output
    several = run_processes(2, "validate", [data, *path, "--task", "translation"]).check().output
    assert loss_of(alone) == loss_of(several)


def loss_of(output: str) -> str:
    return next(line for line in output.splitlines() if "| loss " in line).split("| loss ")[1].split(" |")[0]


def test_no_checkpoint_to_write_does_not_hang(data: Path, tmp_path: Path) -> None:
    flags = [*SGD, "--no-last-checkpoints", "--no-epoch-checkpoints", "--disable-validation"]
    train(2, data, tmp_path, *flags, "--save-interval-updates", "2").check()
    assert [path.name for path in tmp_path.glob("*.pt")] == ["checkpoint_1_2.pt"]


@pytest.mark.parametrize("precision", [[], ["--fp16"]], ids=["float32", "float16"])
def test_an_infinite_gradient_in_one_process_is_seen_by_all(precision: list[str], data: Path, tmp_path: Path) -> None:
    before = """
import os
from fairseq.optim import FairseqOptimizer
reduce = FairseqOptimizer.all_reduce_grads
updates = []
def with_infinity(self, module):
    reduce(self, module)
    updates.append(1)
    if os.environ["RANK"] == "1" and len(updates) == 2:
        next(p for p in module.parameters() if hasattr(p, "expert")).grad[0, 0] = float("inf")
FairseqOptimizer.all_reduce_grads = with_infinity
"""
    arguments = [data, *shrunk(ARCH), *COMMON, *CRITERION, *ADAM, *precision, "--save-dir", tmp_path, "--max-update", 4]
    done = run_processes(2, "train", arguments, before=before, timeout=60)
    if precision:
        assert done.check().output.count("gradient overflow detected") == 1  # the first process says it
        state = weights(tmp_path)
        assert all(value.isfinite().all() for value in state.values())
    else:
        assert done.returncode == 1 and "gradients are Nan/Inf" in done.output
        assert not (tmp_path / "checkpoint_last.pt").exists()


@pytest.mark.parametrize("error", ["RuntimeError('CUDA out of memory')", "ValueError('a bad batch')"])
def test_one_failing_process_ends_all(error: str, data: Path, tmp_path: Path) -> None:
    before = f"""
import os
import torch.distributed as dist
exchange = dist.all_to_all_single
def failing(*arguments, **keywords):
    if os.environ["RANK"] == "1":
        raise {error}
    return exchange(*arguments, **keywords)
dist.all_to_all_single = failing
"""
    arguments = [data, *shrunk(ARCH), *COMMON, *CRITERION, *SGD, "--save-dir", tmp_path]
    done = run_processes(2, "train", arguments, before=before, timeout=60)
    assert done.returncode == 1
    assert error.split("'")[1] in done.output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--zero-sharding", "os"], "--zero-sharding os splits"),
        (["--use-bmuf"], "--use-bmuf averages"),
        (["--ddp-backend", "slowmo"], "--ddp-backend slowmo averages"),
        (["--moe-expert-count", "3"], "--moe-expert-count (3) must divide the number of processes (2)"),
    ],
)
def test_refuses_what_would_destroy_experts(flags: list[str], message: str, data: Path, tmp_path: Path) -> None:
    done = train(2, data, tmp_path, *ADAM, *flags)
    assert done.returncode == 1
    assert message in done.output


def test_weights_differ_between_experts(alone: Path) -> None:
    first, second = (weights(alone)[f"encoder.layers.0.moe_layer.experts.{i}.fc1.weight"] for i in (0, 1))
    assert not torch.equal(first, second)
