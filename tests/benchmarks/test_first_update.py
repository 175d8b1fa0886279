"""benchmarks/first_update.py: what it reads from the log, and its table."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("fairseq")

from benchmarks import first_update

CASE = ["--case", "small:1x8,retnet", "--device", "cpu", "--vocab-size", "100"]
LOG = f"before | train_inner |\n{first_update.BEGINS}\na | train_inner | 1\nb | train_inner | 2\n"


def trained(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let another program take the place of fairseq-train."""
    monkeypatch.setattr(first_update, "sys", SimpleNamespace(executable="sh", path=sys.path))
    monkeypatch.setattr(first_update, "TRAIN", ["-c", program])


def test_marks_are_timed_in_their_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained(monkeypatch, f"printf '{LOG}'")
    begins, *updates = first_update.seconds_of_marks([], tmp_path)
    assert len(updates) == 2 and begins <= updates[0] <= updates[1]


def test_a_run_that_fails_shows_its_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained(monkeypatch, "echo it broke; exit 1")
    with pytest.raises(SystemExit, match="it broke"):
        first_update.seconds_of_marks([], tmp_path)


def test_runs_share_caches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []

    def marks(words: list[str], caches: Path) -> list[float]:
        runs.append((words, caches))
        return [10.0, 12.5, 12.75]

    monkeypatch.setattr(first_update, "seconds_of_marks", marks)
    assert first_update.main(CASE) == 0
    printed = capsys.readouterr().out
    assert "| 4 x 256, 1 x 8, retnet | empty | 10.0 s | 12.5 s | 0.25 s |" in printed and "| filled | 10.0 s" in printed
    assert runs[0] == runs[1] and runs[0][0][-2:] == ["--log-interval", "1"]
