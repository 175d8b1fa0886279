"""benchmarks/translation.py: its commands and its table."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq.tasks.translation import load_langpair_dataset

from benchmarks import translation

LOG = """
2026 | INFO | train_inner | {"wps": "5"}
2026 | INFO | train_inner | {"wps": "%d"}
Translated 2 sentences (8 tokens) in 1.0s (%d.00 sentences/s, 8.00 tokens/s)
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pairs of sentences, of at most 3 and 5 tokens."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dict.en.txt").write_text("")
    for language, lengths in {"en": (3, 4), "de": (2, 5)}.items():
        builder = MMapIndexedDatasetBuilder(str(folder / f"train.en-de.{language}.bin"))
        for length in lengths:
            builder.add_item(torch.arange(length))
        builder.finalize(str(folder / f"train.en-de.{language}.idx"))
    return folder


def test_the_training_set_is_repeated_until_it_is_long_enough(data: Path, tmp_path: Path) -> None:
    """Five batches of 6 tokens are 30, and the set has 8."""
    folder = tmp_path / "repeated"
    translation.repeat_training_set(data, folder, 5, 6)
    words = Dictionary()
    limits = {"left_pad_source": True, "left_pad_target": False, "max_source_positions": 9, "max_target_positions": 9}
    pairs = ("train", "en", words, "de", words)
    found = load_langpair_dataset(str(folder), *pairs, combine=True, dataset_impl="mmap", upsample_primary=1, **limits)
    assert found.src_sizes.tolist() == 4 * [3, 4] and found.tgt_sizes.tolist() == 4 * [2, 5]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands of fairseq that are run, with made-up speeds."""
    commands: list[list[str]] = []

    def run(words: list[str]) -> str:
        commands.append(words)
        speed = 500 if "--compile" in words else 300 if "--user-dir" in words else 100
        return LOG % (speed, speed)

    monkeypatch.setattr(translation, "run", run)
    return commands


def test_table(commands: list[list[str]], capsys: pytest.CaptureFixture[str], data: Path) -> None:
    """Stock runs without this package; the first interval does not count; generation follows the last training."""
    assert translation.main([str(data), "--device", "cpu", "--max-tokens", "64", "128"]) == 0
    text = capsys.readouterr().out
    assert "| | transformer | mt_deepnorm | compiled |\n|---|---|---|---|\n" in text
    assert "| training, --max-tokens 64, tokens/s | 100 | 300 (3.00) | 500 (5.00) |" in text
    assert "| generation, beam 5, sentences/s | 100 | 300 (3.00) |  |" in text
    assert [words[0] for words in commands] == ["train"] * 6 + ["generate"] * 2
    assert ["--compile" in words for words in commands] == [False, False, True] * 2 + [False] * 2


def test_sides(commands: list[list[str]], capsys: pytest.CaptureFixture[str], data: Path) -> None:
    words = ["--device", "cpu", "--max-tokens", "64", "--sides", "compiled", "mt_deepnorm", "--no-generation"]
    assert translation.main([str(data), *words]) == 0
    assert "| training, --max-tokens 64, tokens/s | 500 | 300 |" in capsys.readouterr().out
    assert len(commands) == 2


def test_the_log_is_shown_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    """Translations are not."""
    lines = "2026-11-29 17:24:45 | INFO | train | loading\nH-1\t-0.1\tgut\n"
    assert translation.run_and_show(["sh", "-c", f"printf '{lines}'; exit 3"]) == (3, lines)
    assert capsys.readouterr().err == lines.partition("H-1")[0]


def test_too_few_updates(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        translation.main(["data", "--updates", "99"])
    assert "--updates (99) must be at least 100" in capsys.readouterr().err
