"""benchmarks/translation.py: its commands and its table."""

from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from benchmarks import translation

LOG = """
2026 | INFO | train_inner | {"wps": "5"}
2026 | INFO | train_inner | {"wps": "%d"}
Translated 2 sentences (8 tokens) in 1.0s (%d.00 sentences/s, 8.00 tokens/s)
"""


def test_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Stock runs without this package; the first interval does not count; generation follows the last training."""
    commands: list[list[str]] = []

    def run(words: list[str]) -> str:
        commands.append(words)
        speed = 300 if "--user-dir" in words else 100
        return LOG % (speed, speed)

    monkeypatch.setattr(translation, "run", run)
    assert translation.main([str(tmp_path), "--device", "cpu", "--max-tokens", "64", "128"]) == 0
    text = capsys.readouterr().out
    assert "| training, --max-tokens 64, tokens/s | 100 | 300 | 3.00 |" in text
    assert "| generation, beam 5, sentences/s | 100 | 300 | 3.00 |" in text
    assert [words[0] for words in commands] == ["train"] * 4 + ["generate"] * 2


def test_the_log_is_shown_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    """Translations are not."""
    lines = "2026-11-29 17:24:45 | INFO | train | loading\nH-1\t-0.1\tgut\n"
    assert translation.run_and_show(["sh", "-c", f"printf '{lines}'; exit 3"]) == (3, lines)
    assert capsys.readouterr().err == lines.partition("H-1")[0]


def test_too_few_updates(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        translation.main(["data", "--updates", "99"])
    assert "--updates (99) must be at least 100" in capsys.readouterr().err
