"""benchmarks/slides.py on slides of a few tiles, with a layer of the model."""

import pytest
import torch

from benchmarks import large_inputs, slides


def test_table_and_notes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(large_inputs, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    assert slides.main(["--tiles", "5", "9", "--layers", "1", "--repeats", "1", "--threads", "1"]) == 0
    found = capsys.readouterr().out
    table = [line.split("|")[1].strip() for line in found.splitlines() if line.startswith("| ")]
    assert table[2:] == [f"{work}, {tiles} tiles" for tiles in (5, 9) for work in ("inference", "training step")]
    assert found.count("microseconds per tile: ") == 2


def test_a_million_tiles_fit_the_grid() -> None:
    """Every tile has a cell of its own."""
    cells = slides.square(1_000_000, 256)[0] // 256
    assert cells.max() == 999 and len(torch.unique(cells @ torch.tensor([1, 1000]))) == 1_000_000
