"""benchmarks/speech.py: its data, its commands and its table."""

from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from benchmarks import speech

LOG = """
2026 | INFO | train_inner | {"wps": "5"}
2026 | INFO | train_inner | {"wps": "%d"}
"""


def test_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Stock runs without this package, and its options are for this package's models alone."""
    commands: list[list[str]] = []

    def run(words: list[str]) -> str:
        commands.append(words)
        return LOG % (300 if "--user-dir" in words else 100)

    monkeypatch.setattr(speech, "run", run)
    assert speech.main(["--device", "cpu", "--utterances", "3", "--options=--compile"]) == 0
    assert ["--compile" in words for words in commands] == [False, True]
    text = capsys.readouterr().out
    assert "| `s2t_transformer_m` |" in text and "| 1.00 |" in text and "| 3.00 |" in text


def test_hours_per_token(tmp_path: Path) -> None:
    hours = speech.write_data(tmp_path / "data", 2, (1.0, 1.0))
    assert hours == pytest.approx(2 / 3600 / (2 * (4 + 1)))
    assert len((tmp_path / "data/train.tsv").read_text().splitlines()) == 3


def test_an_epoch_has_enough_frames(tmp_path: Path) -> None:
    speech.write_data(tmp_path / "data", 2, (1.0, 1.0), frames=500)
    rows = [line.split("\t") for line in (tmp_path / "data/train.tsv").read_text().splitlines()[1:]]
    assert sum(int(row[2]) for row in rows) == 600
    assert len({row[0] for row in rows}) == 6 and len({row[1] for row in rows}) == 2
