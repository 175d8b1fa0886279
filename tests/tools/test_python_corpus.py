"""The corpus that scripts/quickstart_lm.sh trains on."""

import re
from itertools import chain
from pathlib import Path

import pytest

from tests.fairseq_cli import TOOL, Finished, run_program
from tests.tools.in_process import run_tool
from torchscale_fairseq.tools.data import python_corpus

SPLITS = ("train", "valid", "test")


def write(directory: Path, *options: object, **environment: str) -> Finished:
    words = ["data", "python-corpus", directory, *options]
    return run_program([*TOOL, *words], environment=environment) if environment else run_tool(*words)


def read(directory: Path) -> dict[str, list[str]]:
    return {split: (directory / f"{split}.txt").read_text("utf-8").split("\n")[:-1] for split in SPLITS}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus") / "made"
    write(directory).check()
    return directory


@pytest.fixture(scope="module")
def corpus(directory: Path) -> dict[str, list[str]]:
    return read(directory)


def test_sizes(directory: Path) -> None:
    sizes = {split: (directory / f"{split}.txt").stat().st_size for split in SPLITS}
    assert sum(sizes.values()) >= 2_000_000
    for held_out in ("valid", "test"):
        assert 0.05 <= sizes[held_out] / sum(sizes.values()) <= 0.1


def test_no_line_occurs_twice_or_is_empty(corpus: dict[str, list[str]]) -> None:
    lines = [line for split in SPLITS for line in corpus[split]]
    assert len(lines) == len(set(lines))
    assert all(line == " ".join(line.split()) != "" for line in lines)


def test_holds_help_docstrings_and_comments(corpus: dict[str, list[str]]) -> None:
    lines = {line for split in SPLITS for line in corpus[split]}
    assert any("Assert statements are a convenient way to insert debugging assertions" in line for line in lines)
    assert "Tool for measuring execution time of small code snippets." in lines  # the docstring of timeit
    assert any(line.startswith("A fast, lightweight IPv4/IPv6 manipulation library") for line in lines)
    assert not any("unittest.main()" in line and line.startswith(">>>") for line in lines)


@pytest.mark.slow
def test_one_seed_gives_one_corpus(corpus: dict[str, list[str]], tmp_path: Path) -> None:
    write(tmp_path / "again", PYTHONHASHSEED="2").check()
    write(tmp_path / "other", "--seed", 2).check()
    assert read(tmp_path / "again") == corpus
    other = read(tmp_path / "other")
    assert other["test"] != corpus["test"]
    assert sorted(chain(*other.values())) == sorted(chain(*corpus.values()))


SOURCE = b'''"""The python_corpus.

Two lines
of a paragraph.
"""
# one line alone
VALUE = 1  # not by itself
# and this neither


class Thing:
    # A comment
    # of two lines.
    #
    # ------------
    # Its second paragraph.

    def method(self):
        """The method.

        >>> doctest()
        """
        return "# no comment\\n# at all"


async def later():
    r"""The last."""
'''


def test_reads_docstrings_and_comments_of_two_lines(tmp_path: Path) -> None:
    (tmp_path / "thing.py").write_bytes(SOURCE)
    assert python_corpus.source_files(tmp_path) == {
        "thing.py": [
            "The python_corpus.",
            "Two lines of a paragraph.",
            "The method.",
            "The last.",
            "A comment of two lines.",
            "Its second paragraph.",
        ]
    }


@pytest.mark.parametrize("folder", ["test", "json/tests", "idlelib/idle_test", "site-packages/numpy"])
def test_leaves_tests_and_packages_out(tmp_path: Path, folder: str) -> None:
    for place in (folder, "json"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "thing.py").write_bytes(SOURCE)
    assert list(python_corpus.source_files(tmp_path)) == ["json/thing.py"]


def test_a_paragraph_stays_where_it_comes_first() -> None:
    documents = {"a": ["same", "one", "same"], "b": ["same"], "c": ["two", "one"]}
    assert python_corpus.without_repetition(documents) == {"a": ["same", "one"], "c": ["two"]}


def test_splits_by_document() -> None:
    documents = {f"{number}": [f"{number} {line:04}" for line in range(10)] for number in range(100, 200)}
    splits = python_corpus.split_documents(documents, seed=1)
    assert {split: len(chosen) for split, chosen in splits.items()} == {"train": 90, "valid": 5, "test": 5}
    assert {name: text for chosen in splits.values() for name, text in chosen.items()} == documents
    assert list(splits["train"]) != sorted(splits["train"])
    assert python_corpus.split_documents(dict(reversed(documents.items())), seed=1) == splits
    assert python_corpus.split_documents(documents, seed=2)["test"] != splits["test"]


def test_refuses_a_directory_in_use(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    done = write(tmp_path)
    assert done.returncode == 1
    sentence = f"{tmp_path} exists and is not an empty directory; remove it or name another."
    assert done.stderr == f"torchscale-fairseq data python-corpus: {sentence}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_refuses_a_python_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "library").mkdir()
    monkeypatch.setattr(python_corpus.sysconfig, "get_path", {"stdlib": str(tmp_path / "library")}.get)
    done = write(tmp_path / "made")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    found = re.fullmatch(
        r".* data python-corpus: the standard library in (\S+) has ([\d,]+) bytes of text in \d+ documents, but a "
        r"language model needs 2,000,000; this Python is installed .*",
        line,
    )
    assert found and found[1] == str(tmp_path / "library")
    assert 100_000 < int(found[2].replace(",", "")) < 2_000_000
    assert not (tmp_path / "made").exists()
