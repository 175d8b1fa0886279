"""torchscale-fairseq average-checkpoints: the mean of several checkpoints."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fairseq_cli import (
    FEW_UPDATES,
    TINY_TRANSFORMER,
    Finished,
    run_fairseq,
    tiny_translation_data,
)
from tests.tools.in_process import run_tool
from torchscale_fairseq.checkpoints.reading import load_checkpoint


def average(*options: object) -> Finished:
    return run_tool("average-checkpoints", *options)


def refuses(message: str, *options: object) -> None:
    done = average(*options)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"torchscale-fairseq average-checkpoints: {message}"]


def write(path: Path, **parameters: torch.Tensor) -> Path:
    """Writes what fairseq writes, as far as it matters here."""
    state = {
        "args": argparse.Namespace(arch="transformer"),
        "model": parameters,
        "last_optimizer_state": {"exp_avg": torch.ones(5)},
        "extra_state": {"epoch": 1},
    }
    torch.save(state, path)
    return path


def read(path: Path) -> dict[str, Any]:
    return load_checkpoint(path)


def filled(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((2, 3), value, dtype=dtype)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "averaged.pt"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_mean_of_three(tmp_path: Path, out: Path, dtype: torch.dtype) -> None:
    values = (40_000, 50_000, 60_000)  # their sum is beyond the range of float16
    paths = [write(tmp_path / f"{value}.pt", w=filled(value, dtype), n=torch.tensor(7)) for value in values]
    average("--inputs", *paths, "--output", out).check()
    state = read(out)
    torch.testing.assert_close(state["model"]["w"], filled(50_000, dtype), rtol=0, atol=0)
    assert state["model"]["n"] == 7
    assert state["args"].arch == "transformer"
    assert state["extra_state"] == {"epoch": 1}
    assert state["last_optimizer_state"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["40000.pt", "50000.pt", "60000.pt", "averaged.pt"]


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ("--num-epoch-checkpoints 2", (9 + 10) / 2),
        ("--num-epoch-checkpoints 3 --checkpoint-upper-bound 9", (7 + 8 + 9) / 3),
        ("--num-update-checkpoints 2", (1100 + 1200) / 2),
        ("--num-update-checkpoints 1 --checkpoint-upper-bound 1150", 1100),
    ],
)
def test_newest_of_a_directory(tmp_path: Path, out: Path, options: str, mean: float) -> None:
    for epoch in range(7, 11):
        write(tmp_path / f"checkpoint{epoch}.pt", w=filled(epoch))
        write(tmp_path / f"checkpoint_{epoch}_{epoch * 100 + 200}.pt", w=filled(epoch * 100 + 200))
    write(tmp_path / "checkpoint_best.pt", w=filled(-1))
    write(tmp_path / "checkpoint_last.pt", w=filled(-1))
    average("--inputs", tmp_path, *options.split(), "--output", out).check()
    torch.testing.assert_close(read(out)["model"]["w"], filled(mean))


def test_fairseq_generates_with_the_average(tmp_path: Path, out: Path) -> None:
    data = tiny_translation_data(tmp_path)
    saving = ["--save-dir", tmp_path / "run", "--save-interval-updates", 1, "--keep-interval-updates", 3]
    run_fairseq("train", [data, *TINY_TRANSFORMER, *FEW_UPDATES, *saving]).check()
    average("--inputs", tmp_path / "run", "--num-update-checkpoints", 2, "--output", out).check()
    ours, theirs = (read(tmp_path / f"run/checkpoint_1_{update}.pt")["model"] for update in (3, 4))
    for name, value in read(out)["model"].items():
        torch.testing.assert_close(value, (ours[name] + theirs[name]) / 2)
    printed = run_fairseq("generate", [data, "--path", out, "--beam", 1]).check().stdout
    assert printed.count("\nH-") + printed.startswith("H-") == 21


def test_refuses_another_set_of_parameters(tmp_path: Path, out: Path) -> None:
    one, two = write(tmp_path / "one.pt", w=filled(1)), write(tmp_path / "two.pt", w=filled(1), extra=filled(1))
    message = f"{two} has the parameter extra, {one} has not; average runs of one architecture"
    refuses(message, "--inputs", one, two, "--output", out)
    refuses(message, "--inputs", two, one, "--output", out)
    assert not out.exists()


def test_refuses_another_shape(tmp_path: Path, out: Path) -> None:
    one, two = write(tmp_path / "one.pt", w=filled(1)), write(tmp_path / "two.pt", w=filled(1)[:1])
    message = f"the parameter w is (2, 3) in {one} and (1, 3) in {two}; average runs of one architecture"
    refuses(message, "--inputs", one, two, "--output", out)


def test_refuses_whole_numbers_that_differ(tmp_path: Path, out: Path) -> None:
    one, two = (write(tmp_path / f"{value}.pt", n=torch.tensor(value)) for value in (1, 2))
    message = f"n holds whole numbers that differ between {one} and {two}"
    refuses(message, "--inputs", one, two, "--output", out)


def test_refuses_a_truncated_checkpoint(tmp_path: Path, out: Path) -> None:
    one, two = (write(tmp_path / f"{value}.pt", w=filled(value)) for value in (1, 2))
    two.write_bytes(two.read_bytes()[:-100])
    done = average("--inputs", one, two, "--output", out)
    assert done.returncode == 1
    assert f"{two} is truncated or not a checkpoint" in done.last_line
    assert not out.exists()


def test_refuses_a_directory_with_too_few(tmp_path: Path, out: Path) -> None:
    write(tmp_path / "checkpoint1.pt", w=filled(1))
    message = f"--num-epoch-checkpoints 2: --inputs {tmp_path} has 1 such checkpoints (it holds "
    message += "checkpoint1.pt); use a lower number or the other option, or train with "
    message += "--keep-last-epochs or --keep-interval-updates"
    refuses(message, "--inputs", tmp_path, "--num-epoch-checkpoints", 2, "--output", out)


def test_refuses_a_directory_without_a_number(tmp_path: Path, out: Path) -> None:
    message = f"--inputs {tmp_path} is a directory; add --num-epoch-checkpoints or --num-update-checkpoints"
    refuses(message, "--inputs", tmp_path, "--output", out)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--num-epoch-checkpoints 0", 2, "--num-epoch-checkpoints: 0 must be a whole number of at least 1"),
        ("--checkpoint-upper-bound 3", 1, "--checkpoint-upper-bound needs --num-epoch-checkpoints or --num-update"),
    ],
)
def test_refuses_options_that_do_not_go_together(
    options: str, code: int, message: str, tmp_path: Path, out: Path
) -> None:
    done = average("--inputs", tmp_path, "--output", out, *options.split())
    assert done.returncode == code
    assert message in done.last_line
