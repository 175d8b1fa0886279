"""A full disk: training and averaging leave the last good checkpoint, and go on after room is made."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fairseq_cli import FEW_UPDATES, TINY_TRANSFORMER, run_fairseq
from tests.small_disk import fill, small_disk
from tests.tools.in_process import run_tool
from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.checkpoints.writing import size_of, write_checkpoint
from torchscale_fairseq.core.files import WriteError

ROOM = 1 << 14


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, "4m") as mounted:
        yield mounted


def test_training_keeps_the_last_checkpoint_and_resumes_after_room_is_made(
    disk: Path, stock_checkpoint: Path, translation_data: Path
) -> None:
    last = disk / "checkpoint_last.pt"
    shutil.copy(stock_checkpoint, last)
    before, filler = last.read_bytes(), fill(disk, ROOM)
    more = ["--save-dir", disk, "--max-update", 6, "--no-epoch-checkpoints"]
    words = [translation_data, *TINY_TRANSFORMER, *FEW_UPDATES, *more]
    done = run_fairseq("train", words)
    assert done.returncode == 1
    assert "Traceback" not in done.output
    assert done.last_line.startswith(
        f"fairseq-train: {disk}/checkpoint_best.pt cannot be written: No space left on device (it takes about "
    )
    assert done.last_line.endswith(f"{last} is whole, and the same command resumes from it.")
    assert last.read_bytes() == before
    assert list(disk.glob("*checkpoint*")) == [last]
    filler.unlink()
    run_fairseq("train", words).check()
    assert load_checkpoint(last)["optimizer_history"][-1]["num_updates"] == 6


def test_averaging_leaves_no_file(disk: Path, stock_checkpoint: Path) -> None:
    filler, averaged = fill(disk, ROOM), disk / "average.pt"
    words = ["--inputs", stock_checkpoint, "--output", averaged]
    done = run_tool("average-checkpoints", *words)
    assert done.returncode == 1
    assert f": {averaged} cannot be written: No space left on device " in done.stderr
    assert [path.name for path in disk.iterdir()] == [filler.name]
    filler.unlink()
    run_tool("average-checkpoints", *words).check()
    assert load_checkpoint(averaged)["model"].keys() == load_checkpoint(stock_checkpoint)["model"].keys()


def test_room_that_a_checkpoint_takes_is_named(disk: Path) -> None:
    shared = torch.zeros(1 << 18)
    state = {"model": {"a": shared, "b": shared.view(2, -1)}, "optimizer": [torch.zeros(1 << 19, dtype=torch.bool)]}
    assert size_of(state) == (1 << 20) + (1 << 19)
    fill(disk, ROOM)
    with pytest.raises(WriteError, match=r"it takes about 1,572,864 bytes, and 16,384 were free"):
        write_checkpoint(state, disk / "checkpoint.pt")


def test_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"missing/average.pt cannot be written: No such file or directory"):
        write_checkpoint({}, tmp_path / "missing" / "average.pt")
