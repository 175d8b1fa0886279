"""Starting a training command again: what is finished stays, and what was begun is found or missed by name."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fairseq")

import torchscale_fairseq.models  # noqa: F401 - registers them
from tests.fairseq_cli import FEW_UPDATES, TINY_LANGUAGE_MODEL, TINY_TRANSFORMER, Finished, run_fairseq, run_processes
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.hooks.runs import finished, save_dir
from torchscale_fairseq.hooks.training.deferring_trainer import DeferringTrainer
from torchscale_fairseq.hooks.training.trainer import Trainer


def train_language(data: Path, folder: Path, *flags: object, **options: Any) -> Finished:
    return run_fairseq("train", [data, *TINY_LANGUAGE_MODEL, *FEW_UPDATES, "--save-dir", folder, *flags], **options)


def assert_left_alone(again: Finished, checkpoint: Path, before: bytes, limit: str) -> None:
    assert f"nothing to train: {limit}" in again.check().output
    assert "num_updates=" not in again.output and "Saving checkpoint" not in again.output
    assert checkpoint.read_bytes() == before


def test_max_update_holds_for_stock_models(translation_data: Path, stock_checkpoint: Path, tmp_path: Path) -> None:
    """Four updates of an epoch of six are made; stock makes a fifth."""
    shutil.copytree(stock_checkpoint.parent, tmp_path / "run")
    checkpoint = tmp_path / "run" / stock_checkpoint.name
    again = run_fairseq("train", [translation_data, *TINY_TRANSFORMER, *FEW_UPDATES, "--save-dir", checkpoint.parent])
    assert_left_alone(again, checkpoint, stock_checkpoint.read_bytes(), "--max-update (4) is reached after 4 updates")


def test_patience_holds(language_data: Path, tmp_path: Path) -> None:
    """With a learning rate of zero the second validation is no better than the first."""
    flags = ["--lr", "0", "--patience", "1", "--validate-interval-updates", "1", "--max-update", "9"]
    train_language(language_data, tmp_path, *flags).check()
    checkpoint = tmp_path / "checkpoint_last.pt"
    before = checkpoint.read_bytes()
    assert_left_alone(train_language(language_data, tmp_path, *flags), checkpoint, before, "--patience (1) is reached")


@pytest.mark.parametrize(
    ("limits", "end"),
    [
        ({}, None),
        ({"max_update": 101}, None),
        ({"max_update": 100}, "--max-update (100) is reached after 100 updates"),
        ({"max_epoch": 3}, None),
        ({"max_epoch": 2}, "--max-epoch (2) is reached"),
        ({"stop_time_hours": 1.5}, None),
        ({"stop_time_hours": 1.4}, "--stop-time-hours (1.4) is reached after 1.5 hours"),
    ],
    ids=str,
)
def test_each_limit_ends_a_run(limits: dict[str, float], end: str | None) -> None:
    """After 100 updates, 1.5 hours and two epochs."""
    options = SimpleNamespace(**{"max_update": 0, "max_epoch": 0, "stop_time_hours": 0, **limits})
    trainer = SimpleNamespace(
        cfg=SimpleNamespace(optimization=options, checkpoint=SimpleNamespace(patience=-1)),
        get_num_updates=lambda: 100,
        _previous_training_time=1.5 * 3600,
    )
    assert finished.end_of(trainer, epoch=3) == end


def test_wall_counts_from_the_start(translation_data: Path, stock_checkpoint: Path, tmp_path: Path) -> None:
    """A process resumed within an epoch, whose clock runs a thousand times as fast."""
    fast = "import time\nclock = time.perf_counter\ntime.perf_counter = lambda: 1000 * clock()"
    flags = ["--restore-file", stock_checkpoint, "--max-update", "5", "--no-save", "--disable-validation"]
    arguments = [translation_data, *TINY_TRANSFORMER, *FEW_UPDATES, *flags, "--save-dir", tmp_path]
    done = run_processes(1, "train", arguments, before=fast).check()
    assert "num_updates=5," in done.output and "wall=0" not in done.output


def test_restore_file_must_exist(language_data: Path, tmp_path: Path) -> None:
    done = train_language(language_data, tmp_path, "--restore-file", tmp_path / "none.pt")
    assert done.returncode and f"--restore-file ({tmp_path}/none.pt) does not exist" in done.last_line


def test_first_start_may_name_the_checkpoint_to_be(tmp_path: Path) -> None:
    for name in ("checkpoint_last.pt", f"{tmp_path}/checkpoint_last.pt"):
        save_dir.check_restore_file(SimpleNamespace(save_dir=str(tmp_path), restore_file=name, continue_once=None))
    missing = SimpleNamespace(save_dir="x", restore_file="checkpoint_last.pt", continue_once=f"{tmp_path}/a.pt")
    with pytest.raises(InputError, match=r"--continue-once \(.*/a.pt\) does not exist"):
        save_dir.check_restore_file(missing)


def test_one_run_at_a_time_writes_to_a_folder(language_data: Path, tmp_path: Path) -> None:
    with save_dir.claim(tmp_path):
        done = train_language(language_data, tmp_path)
        assert done.returncode and f"--save-dir ({tmp_path}) is in use by another run (process " in done.last_line
        train_language(language_data, tmp_path, "--no-save", "--max-update", "1", "--disable-validation").check()


def test_speed_is_averaged_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process reads 10 tokens and the second, whose statistics are added here, 30."""

    def add_the_second(self: Any, logged: Any, *sums: Any, ignore: bool) -> Any:
        return logged, [s + other for s, other in zip(sums, (1, 30.0, 6.0), strict=True)]

    monkeypatch.setattr(DeferringTrainer, "_aggregate_logging_outputs", add_the_second, raising=False)
    monkeypatch.setattr(Trainer, "data_parallel_world_size", 2)
    monkeypatch.setattr(Trainer, "_sums_can_wait", False)
    trainer = Trainer.__new__(Trainer)
    trainer._model = SimpleNamespace(training=False)
    trainer._sharing, trainer._signals, trainer._own_work = None, None, [10.0, 2.0]
    assert trainer._aggregate_logging_outputs([], 1) == ([], [2])
    assert trainer._work == [20.0, 4.0]
