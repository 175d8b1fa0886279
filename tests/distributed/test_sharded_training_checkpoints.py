"""Checkpoints of --ddp-backend fully_sharded: any number of processes resumes them, sharded or not."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from tests.checkpoints import assert_same_weights
from tests.distributed.expert_training import train
from tests.distributed.fully_sharded import ADAM, SHARDED
from tests.distributed.short_training import words
from tests.fairseq_cli import run_fairseq, run_processes, tiny_language_data
from torchscale_fairseq.checkpoints.distributed import FOLDER, consolidate
from torchscale_fairseq.checkpoints.reading import load_checkpoint, read_mapped

LAST = "checkpoint_last.pt"
FLAGS = [*ADAM, "--store-ema", "--ema-fp32"]
ENDS_ITSELF = """
import os, signal
from torchscale_fairseq import plugin
plugin.register()
from torchscale_fairseq.hooks.sharding import asynchronous
finish = asynchronous.PendingSave.finish
def finish_or_die(self):
    self._written.result()
    if "update2" in self._folder.name:
        os.kill(os.getpid(), signal.SIGKILL)
    finish(self)
asynchronous.PendingSave.finish = finish_or_die
"""
RESERVES = """
from torchscale_fairseq import plugin
plugin.register()
from torchscale_fairseq.hooks.sharding import asynchronous
begin = asynchronous.SliceWriter.begin
def begin_with_what_there_is(self, tensors, folder):
    reserved = self._copies
    written = begin(self, tensors, folder)
    print("there was", "memory" if reserved is self._copies else "none", flush=True)
    return written
asynchronous.SliceWriter.begin = begin_with_what_there_is
"""


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three updates in one process, and then six in ``end``."""
    folder = tmp_path_factory.mktemp("alone")
    train(1, data, folder, *FLAGS).check()
    train(1, data, folder / "end", *FLAGS, "--restore-file", folder / LAST, updates=6).check()
    return folder


@pytest.fixture(scope="module")
def sharded(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three updates in two processes, each of which writes its slices while training goes on."""
    folder = tmp_path_factory.mktemp("sharded")
    more = ["--async-checkpoint", "--save-interval-updates", "1", "--keep-interval-updates", "1"]
    train(2, data, folder, *FLAGS, *SHARDED, *more, "--no-epoch-checkpoints").check()
    return folder


def assert_same(ours: Any, expected: Any) -> None:
    """Compare states of nested containers."""
    if isinstance(expected, dict):
        assert ours.keys() == expected.keys()
        for name in expected:
            if not str(name).endswith("k_proj.bias"):
                assert_same(ours[name], expected[name])
    elif torch.is_tensor(expected):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def assert_same_state(ours: Path, expected: Path) -> None:
    """Weights, optimizer states and averages."""
    one, two = load_checkpoint(ours), load_checkpoint(expected)
    assert_same(one["model"], two["model"])
    assert_same(one["last_optimizer_state"]["state"], two["last_optimizer_state"]["state"])
    for entry in ("ema", "ema_fp32_params"):
        assert_same(one["extra_state"][entry], two["extra_state"][entry])


def test_asynchronous_checkpoints_hold_what_one_process_writes(sharded: Path, alone: Path) -> None:
    assert_same_state(sharded / LAST, alone / LAST)
    names = sorted(path.name for path in sharded.glob("*.pt"))
    assert names == ["checkpoint_1_3.pt", "checkpoint_best.pt", LAST]
    assert len(list((sharded / FOLDER).iterdir())) <= 2, "those of checkpoints that were removed are gone"


@pytest.mark.parametrize(("processes", "flags"), [(4, SHARDED), (2, [])], ids=["four", "ddp"])
def test_others_resume_it(
    processes: int, flags: list[str], sharded: Path, alone: Path, data: Path, tmp_path: Path
) -> None:
    done = train(processes, data, tmp_path, *FLAGS, *flags, "--restore-file", sharded / LAST, updates=6).check()
    assert "@ 3 updates" in done.output
    assert_same_state(tmp_path / LAST, alone / "end" / LAST)


def test_a_sharded_run_resumes_one_file(alone: Path, data: Path, tmp_path: Path) -> None:
    train(2, data, tmp_path, *FLAGS, *SHARDED, "--restore-file", alone / LAST, updates=6).check()
    assert_same_state(tmp_path / LAST, alone / "end" / LAST)


def test_consolidated_and_read_by_stock(sharded: Path, data: Path, tmp_path: Path) -> None:
    consolidate(sharded / LAST, tmp_path / "whole.pt", read_mapped)
    whole = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert_same(whole["model"], load_checkpoint(sharded / LAST)["model"])
    assert_same_state(tmp_path / "whole.pt", sharded / LAST)
    for path in (tmp_path / "whole.pt", sharded / LAST):
        arguments = [data, "--path", path, "--cpu", "--beam", "1", "--batch-size", "11"]
        assert "Generate test" in run_fairseq("generate", arguments).check().output


@pytest.mark.parametrize("command", ["generate", pytest.param("validate", marks=pytest.mark.slow)])
def test_processes_that_hold_slices_evaluate_as_one(command: str, sharded: Path, data: Path) -> None:
    arguments = [data, "--path", sharded / LAST, "--cpu", "--batch-size", "11", "--task", "translation"]
    arguments += ["--beam", "2", "--max-len-b", "4"] if command == "generate" else ["--log-format", "json"]
    one = run_fairseq(command, arguments).check()
    two = run_processes(2, command, [*arguments, *SHARDED]).check()
    assert _results(two.output) == _results(one.output) != []


@pytest.mark.slow
def test_processes_that_hold_slices_of_a_language_model_evaluate_as_one(tmp_path: Path) -> None:
    data = tiny_language_data(tmp_path)
    run_processes(2, "train", [*words(data, tmp_path / "run"), *SHARDED, "--tokens-per-sample", "8"]).check()
    arguments = [data, "--path", tmp_path / "run" / LAST, "--cpu", "--task", "language_modeling", "--batch-size", "3"]
    arguments += ["--gen-subset", "valid", "--tokens-per-sample", "8"]
    one = run_fairseq("eval_lm", arguments).check()
    two = run_processes(2, "eval_lm", [*arguments, *SHARDED]).check()
    assert _results(two.output) == _results(one.output) != []


def _results(output: str) -> list[str]:
    """Hypotheses and scores, or losses of a validation, in the order in which they are printed."""
    return re.findall(r"(?m)^[HP]-.*$|valid_nll_loss\S+ \S+|Loss \(base 2\): \S+", output)


def test_memory_for_copies_is_reserved_before_the_first_save(data: Path, tmp_path: Path) -> None:
    more = [*FLAGS, *SHARDED, "--async-checkpoint", "--save-interval-updates", "2", "--no-epoch-checkpoints"]
    done = train(2, data, tmp_path, *more, before=RESERVES).check()
    assert done.output.count("there was memory") >= 2 and "there was none" not in done.output


def test_killed_in_a_save_leaves_the_one_before(data: Path, tmp_path: Path) -> None:
    more = [*FLAGS, *SHARDED, "--async-checkpoint", "--save-interval-updates", "1", "--no-epoch-checkpoints"]
    killed = train(2, data, tmp_path, *more, before=ENDS_ITSELF)
    assert killed.returncode
    assert "(epoch 1 @ 1 updates)" in train(2, data, tmp_path, *more).check().output, "as it is loaded"


@pytest.mark.slow
def test_from_one_process_to_two_to_four_to_one(alone: Path, data: Path, tmp_path: Path) -> None:
    before = alone / LAST
    for updates, processes in ((4, 2), (5, 4), (6, 1)):
        folder = tmp_path / str(updates)
        done = train(processes, data, folder, *FLAGS, *SHARDED, "--restore-file", before, updates=updates).check()
        assert f"@ {updates - 1} updates" in done.output
        before = folder / LAST
    assert_same_state(before, alone / "end" / LAST)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["--bf16", "--fp16"])
def test_half_precision_goes_between_sharded_and_not(precision: str, data: Path, tmp_path: Path) -> None:
    flags = [*ADAM, precision, "--fp16-no-flatten-grads"]
    train(2, data, tmp_path / "a", *flags, *SHARDED).check()
    train(2, data, tmp_path / "b", *flags, "--restore-file", tmp_path / "a" / LAST, updates=5).check()
    done = train(2, data, tmp_path / "c", *flags, *SHARDED, "--restore-file", tmp_path / "b" / LAST, updates=7).check()
    assert "@ 5 updates" in done.output
    train(2, data, tmp_path / "d", *flags, *SHARDED, "--restore-file", tmp_path / "a" / LAST, updates=5).check()
    assert_same_weights(tmp_path / "b", tmp_path / "d", 2e-2)
