"""The real parallel text that scripts/experiments/translation_depth.py trains on, from wheels made here."""

from pathlib import Path
from typing import Any

import pytest

from tests.fairseq_cli import Finished
from tests.tools.in_process import run_tool
from tests.tools.wheels import add_wheel

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


def write(directory: Path, *options: object) -> Finished:
    return run_tool("data", "catalog-corpus", directory, *options)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    german = {f"Open file {number}": f"Datei {number} öffnen" for number in NUMBERS}
    unusable = {"Open": "Öffnen", "open FILE one": "zweite Fassung", "Spam eggs": "Spam eggs", "a " * 41: "b " * 41}
    add_wheel(folder, "first", german, "de/LC_MESSAGES/django.mo")
    add_wheel(folder, "second", unusable | {"Two\n  lines": "Zwei\nZeilen"}, "de_DE/LC_MESSAGES/second.mo")
    return folder


def test_each_usable_message_is_a_pair_of_one_split(wheels: Path, tmp_path: Path) -> None:
    write(tmp_path / "made", "--wheels", wheels, "--valid-pairs", 2, "--test-pairs", 3).check()
    pairs: dict[Any, Any] = {}
    for split, size in {"train": 6, "valid": 2, "test": 3}.items():
        english, german = ((tmp_path / f"made/{split}.{side}").read_text().splitlines() for side in ("en", "de"))
        assert len(english) == len(german) == size
        pairs |= dict(zip(english, german, strict=True))
    files = {"%d new file": "%d neue Datei", "%d new files": "%d neue Dateien", "Two lines": "Zwei Zeilen"}
    assert pairs == files | {f"Open file {number}": f"Datei {number} öffnen" for number in NUMBERS}


def test_too_few_pairs_are_refused(wheels: Path, tmp_path: Path) -> None:
    done = write(tmp_path / "made", "--wheels", wheels)
    assert done.returncode == 1 and not (tmp_path / "made").exists()
    assert done.stderr.splitlines() == [
        "torchscale-fairseq data catalog-corpus: --valid-pairs (1000) and --test-pairs (1000) leave none of 11 "
        "pairs to train on; use lower numbers."
    ]


def test_file_that_is_no_wheel_is_named(wheels: Path, tmp_path: Path) -> None:
    (wheels / "broken.whl").write_text("")
    assert "broken.whl is not a wheel" in write(tmp_path / "made", "--wheels", wheels).stderr
