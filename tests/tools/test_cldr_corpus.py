"""The corpus that scripts/quickstart.sh trains on."""

import random
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from tests.fairseq_cli import TOOL, Finished, run_program
from tests.tools.in_process import run_tool
from torchscale_fairseq.tools.data import cldr_corpus, cldr_sentences

SIZES = {"train": 20_000, "valid": 1_000, "test": 1_000}
KINDS = ["currencies", "dates", "numbers", "territories", "times", "units"]
Line = tuple[str, str, str]


def write(directory: Path, *options: object, **environment: str) -> Finished:
    words = ["data", "cldr-corpus", directory, *options]
    return run_program([*TOOL, *words], environment=environment) if environment else run_tool(*words)


def read(directory: Path, split: str) -> list[Line]:
    """Returns the kind, the English and the German of every line."""
    columns = [(directory / f"{split}.{suffix}").read_text().splitlines() for suffix in ("kind", "en", "de")]
    return list(zip(*columns, strict=True))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Line]]:
    directory = tmp_path_factory.mktemp("corpus") / "made"
    write(directory).check()
    return {split: read(directory, split) for split in SIZES}


@pytest.mark.parametrize("split", SIZES)
def test_split_holds_the_six_kinds_in_equal_shares(corpus: dict[str, list[Line]], split: str) -> None:
    shares = Counter(kind for kind, _, _ in corpus[split])
    assert sum(shares.values()) == SIZES[split]
    assert sorted(shares) == KINDS
    assert max(shares.values()) - min(shares.values()) <= 1


def test_no_english_line_occurs_twice(corpus: dict[str, list[Line]]) -> None:
    occurrences = Counter(english for lines in corpus.values() for _, english, _ in lines)
    assert occurrences.most_common(1)[0][1] == 1


def test_lines_survive_the_normalisation_of_sentencepiece(corpus: dict[str, list[Line]]) -> None:
    for lines in corpus.values():
        for _, *sides in lines:
            for side in sides:
                assert side == " ".join(unicodedata.normalize("NFKC", side).split())


def test_every_name_of_the_test_set_is_in_the_training_set(corpus: dict[str, list[Line]]) -> None:
    names = {kind: Counter[str]() for kind in ("currencies", "units", "territories")}
    for kind, _, german in corpus["train"]:
        if kind in names:
            names[kind].update(german.rstrip(".").split())
    for kind, _, german in corpus["test"]:
        for word in german.rstrip(".").split() if kind in names else []:
            assert names[kind][word] >= 3 or any(map(str.isdigit, word)), f"{kind}: {word}"


def test_times_agree(corpus: dict[str, list[Line]]) -> None:
    compared = 0
    for _, english, german in (line for line in corpus["train"] if line[0] == "times"):
        theirs = re.findall(r"(\d+):(\d\d) ([AP]M)", english)
        expected = [f"{int(hour) % 12 + 12 * (half == 'PM'):02d}:{minute}" for hour, minute, half in theirs]
        assert re.findall(r"\d\d:\d\d", german) == expected
        compared += len(expected)
    assert compared > 1000


@pytest.mark.parametrize("kind", ["currencies", "units"])
def test_amounts_agree(corpus: dict[str, list[Line]], kind: str) -> None:
    for _, english, german in (line for line in corpus["train"] if line[0] == kind):
        [amount] = re.findall(r"\d[\d.,]*\d|\d", english)
        assert re.findall(r"\d[\d.,]*\d|\d", german) == [amount.translate(str.maketrans(".,", ",."))]


def test_dates_agree(corpus: dict[str, list[Line]]) -> None:
    months = {"January": "Januar", "March": "März", "May": "Mai", "October": "Oktober"}
    for _, english, german in (line for line in corpus["train"] if line[0] == "dates"):
        assert sorted(re.findall(r"\d+", english)) == sorted(re.findall(r"\d+", german))
        for month, monat in months.items():
            assert len(re.findall(rf"\b{month}\b", english)) == len(re.findall(rf"\b{monat}\b", german))


def test_numbers_are_in_words(corpus: dict[str, list[Line]]) -> None:
    for _, english, german in (line for line in corpus["train"] if line[0] == "numbers"):
        assert not re.search(r"\d", english + german)


def test_one_seed_gives_one_corpus(tmp_path: Path) -> None:
    few = ("--train-pairs", 60, "--valid-pairs", 6, "--test-pairs", 6)
    write(tmp_path / "first", *few, "--seed", 3, PYTHONHASHSEED="1").check()
    write(tmp_path / "second", *few, "--seed", 3, PYTHONHASHSEED="2").check()
    write(tmp_path / "other", *few, "--seed", 4).check()
    assert read(tmp_path / "first", "train") == read(tmp_path / "second", "train")
    assert read(tmp_path / "first", "train") != read(tmp_path / "other", "train")


def test_refuses_a_directory_in_use(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    done = write(tmp_path)
    assert done.returncode != 0
    assert f"{tmp_path} exists and is not an empty directory; remove it or name another" in done.last_line
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_refuses_a_split_without_room_for_every_kind(tmp_path: Path) -> None:
    done = write(tmp_path / "made", "--test-pairs", 5)
    assert done.returncode != 0
    assert "each split needs at least 6 pairs" in done.last_line


def test_refuses_more_pairs_than_a_kind_has(monkeypatch: pytest.MonkeyPatch) -> None:
    five_days = cldr_sentences.one_of([(f"day {number}", f"Tag {number}") for number in range(5)])
    monkeypatch.setitem(cldr_sentences.KINDS, "dates", [cldr_sentences.Template("{}.", "{}.", (five_days,))])
    assert len(cldr_corpus.draw_distinct_pairs("dates", 5, random.Random(1), set())) == 5
    with pytest.raises(ValueError, match="cannot draw 6 different sentences of the kind 'dates'"):
        cldr_corpus.draw_distinct_pairs("dates", 6, random.Random(1), set())
