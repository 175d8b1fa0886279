"""The corpus that scripts/quickstart_lm.sh trains on."""

import importlib.util
import re
import sys
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest

from tests.fairseq_cli import REPOSITORY, Finished, run_program

SCRIPT = REPOSITORY / "scripts/data/python_corpus.py"
SPLITS = ("train", "valid", "test")


def write(directory: Path, *options: object, **environment: str) -> Finished:
    return run_program([sys.executable, SCRIPT, directory, *options], environment=environment)


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


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("python_corpus", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


SOURCE = b'''"""The module.

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


def test_reads_docstrings_and_comments_of_two_lines(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "thing.py").write_bytes(SOURCE)
    assert module.source_files(tmp_path) == {
        "thing.py": [
            "The module.",
            "Two lines of a paragraph.",
            "The method.",
            "The last.",
            "A comment of two lines.",
            "Its second paragraph.",
        ]
    }


@pytest.mark.parametrize("folder", ["test", "json/tests", "idlelib/idle_test", "site-packages/numpy"])
def test_leaves_tests_and_packages_out(module: ModuleType, tmp_path: Path, folder: str) -> None:
    for place in (folder, "json"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "thing.py").write_bytes(SOURCE)
    assert list(module.source_files(tmp_path)) == ["json/thing.py"]


def test_a_paragraph_stays_where_it_comes_first(module: ModuleType) -> None:
    documents = {"a": ["same", "one", "same"], "b": ["same"], "c": ["two", "one"]}
    assert module.without_repetition(documents) == {"a": ["same", "one"], "c": ["two"]}


def test_splits_by_document(module: ModuleType) -> None:
    documents = {f"{number}": [f"{number} {line:04}" for line in range(10)] for number in range(100, 200)}
    splits = module.split_documents(documents, seed=1)
    assert {split: len(chosen) for split, chosen in splits.items()} == {"train": 90, "valid": 5, "test": 5}
    assert {name: text for chosen in splits.values() for name, text in chosen.items()} == documents
    assert list(splits["train"]) != sorted(splits["train"])
    assert module.split_documents(dict(reversed(documents.items())), seed=1) == splits
    assert module.split_documents(documents, seed=2)["test"] != splits["test"]


def test_refuses_a_directory_in_use(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    done = write(tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        f"python_corpus.py: {tmp_path} exists and is not an empty directory; remove it or name another.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_refuses_a_python_without_its_library(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "library").mkdir()
    monkeypatch.setattr(module.sysconfig, "get_path", {"stdlib": str(tmp_path / "library")}.get)
    monkeypatch.setattr(sys, "argv", ["python_corpus.py", str(tmp_path / "made")])
    assert module.main() == 1
    [line] = capsys.readouterr().err.splitlines()
    found = re.fullmatch(
        r"python_corpus.py: the standard library in (\S+) has ([\d,]+) bytes of text in \d+ documents, but a language "
        r"model needs 2,000,000; this Python is installed .*",
        line,
    )
    assert found and found[1] == str(tmp_path / "library")
    assert 100_000 < int(found[2].replace(",", "")) < 2_000_000
    assert not (tmp_path / "made").exists()
