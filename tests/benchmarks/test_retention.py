"""benchmarks/retention.py on a tiny layer: its table, and what it refuses to time."""

import shlex
from collections.abc import Iterator

import official
import pytest
import retention
import torch

TINY = shlex.split("--width 128 --value-width 24 --heads 2 --repeats 1 --threads 1 --lengths 12")
DECODE = shlex.split("decode --layers 1 --sentences 2 --prompts 5 9 --new-tokens 32")


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def torchscale(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchscale", reason=f"needs {official.INSTALL}")
    monkeypatch.setattr(retention, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(retention, "_official", None)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")


def rows(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("| ")]


def test_training_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert retention.main(["train", *TINY]) == 0
    printed = capsys.readouterr().out
    assert [row[1] for row in rows(printed)[2:]] == ["official", "ours", "attention", "official", "ours"]
    assert printed.startswith("`python benchmarks/retention.py train")
    assert printed.count("output and gradients differ by up to") == 2


def test_decoding_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert retention.main([*DECODE, *TINY]) == 0
    printed = capsys.readouterr().out
    assert [row[1] for row in rows(printed)[2:]] == ["attention", "ours"] * 2
    assert printed.count("times the tokens per second of attention") == 2


def test_nothing_that_differs_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(retention, "ALLOWED", -1.0)
    assert retention.main(["train", *TINY]) == 1
    found = capsys.readouterr()
    assert "ours and official disagree: layer" in found.err and len(rows(found.out)) == 2
