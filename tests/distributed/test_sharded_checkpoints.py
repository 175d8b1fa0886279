"""--moe-checkpoint-format sharded: experts in a file per process."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from tests.checkpoints import assert_same_weights
from tests.distributed.expert_training import ADAM, SHARDED, assert_same_state, train
from tests.fairseq_cli import run_fairseq
from tests.tools.in_process import run_tool
from torchscale_fairseq.checkpoints.reading import load_checkpoint, read_file


@pytest.fixture(scope="module")
def sharded(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three updates of two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    train(2, data, folder, *ADAM, *SHARDED, "--store-ema").check()
    return folder


def shards(folder: Path) -> list[Path]:
    """Files of experts, which are named by update, time and process."""
    found = sorted((folder / "experts").iterdir())
    assert len({path.name.split(".")[0] for path in found}) == 1
    return found


def test_experts_lie_apart(sharded: Path) -> None:
    first, second = shards(sharded)
    assert first.name.startswith("update3-") and first.name.endswith(".0of2.pt") and second.name.endswith(".1of2.pt")
    alone = read_file(sharded / "checkpoint_last.pt")
    assert not [name for name in alone["model"] if ".experts." in name]
    names = read_file(second)["model"]
    assert {name.split(".experts.")[1].split(".")[0] for name in names} == {"2", "3"}


def test_equals_the_merged_format(data: Path, sharded: Path, tmp_path: Path) -> None:
    train(2, data, tmp_path, *ADAM, "--store-ema").check()
    expected, found = (load_checkpoint(folder / "checkpoint_last.pt") for folder in (tmp_path, sharded))
    assert found["model"].keys() == expected["model"].keys()
    for name, value in expected["model"].items():
        torch.testing.assert_close(found["model"][name], value, atol=1e-6, rtol=0, msg=name)
    assert found["extra_state"]["ema"].keys() == expected["extra_state"]["ema"].keys()
    assert_same_state(found["last_optimizer_state"], expected["last_optimizer_state"])


@pytest.mark.parametrize("processes", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_resumes_in_any_number_of_processes(processes: int, data: Path, sharded: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged.pt"
    done = run_tool("convert", "merge-experts", sharded / "checkpoint_last.pt", merged).check()
    assert done.stdout == f"wrote {merged}\n"
    for name, path in (("a", sharded / "checkpoint_last.pt"), ("b", merged)):
        train(processes, data, tmp_path / name, *ADAM, "--store-ema", "--restore-file", path, updates=5).check()
    assert_same_weights(tmp_path / "a", tmp_path / "b", 1e-7)


def test_generates_from_the_shards(data: Path, sharded: Path) -> None:
    arguments = [data, "--path", sharded / "checkpoint_last.pt", "--cpu", "--batch-size", "8", "--beam", "2"]
    assert "Generate test" in run_fairseq("generate", arguments).check().output


def test_a_missing_or_truncated_shard_is_named(data: Path, sharded: Path, tmp_path: Path) -> None:
    train(2, data, tmp_path, *ADAM, *SHARDED).check()
    shard = shards(tmp_path)[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:1000])
    for processes in (1, 2):
        done = train(processes, data, tmp_path, *ADAM, *SHARDED, updates=5)
        assert done.returncode == 1
        assert f"{shard} is truncated or not a checkpoint (1,000 bytes)" in done.output
    shard.unlink()
    done = train(1, data, tmp_path, *ADAM, *SHARDED, updates=5)
    assert done.returncode == 1 and str(shard) in done.output
    assert run_tool("convert", "merge-experts", tmp_path / "checkpoint_last.pt", tmp_path / "merged.pt").returncode == 1


def test_shards_of_removed_checkpoints_go(data: Path, tmp_path: Path) -> None:
    flags = ["--save-interval-updates", "1", "--keep-interval-updates", "1", "--disable-validation"]
    train(2, data, tmp_path, *ADAM, *SHARDED, *flags, "--no-epoch-checkpoints", updates=3).check()
    assert [path.name.startswith("update3-") for path in shards(tmp_path)] == [True, True]


def test_nothing_to_merge(data: Path, tmp_path: Path) -> None:
    train(1, data, tmp_path, *ADAM, updates=1).check()
    done = run_tool("convert", "merge-experts", tmp_path / "checkpoint_last.pt", tmp_path / "merged.pt")
    assert "has no experts in files of their own" in done.stderr
