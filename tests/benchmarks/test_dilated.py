"""benchmarks/dilated.py on a few hundred tokens, the figure, and the computation from its numbers."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import billion_tokens, dilated, dilated_figure

SMALL = shlex.split(
    "both --lengths 64 96 --dense-up-to 64 --memory-length 128 --ffn-chunk-size 32 --repeats 1 --threads 1"
)

ALL = ["dense", "ours", "layer"]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dilated, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(dilated, "CHECKED", 150)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")


def test_table_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dilated.main([*SMALL, "--json", str(tmp_path / "numbers.json")]) == 0
    printed = capsys.readouterr().out
    table = [[cell.strip() for cell in line.split("|")[1:3]] for line in printed.splitlines() if line.startswith("| ")]
    assert [side for _, side in table[2:]] == ["dense", "ours", *ALL, "ours", *ALL[1:]]
    assert "times as fast as dense" in printed and "differ from the definition by up to" in printed
    assert printed.count("GB at its peak") == 2
    report = json.loads((tmp_path / "numbers.json").read_text())
    assert report["segment_lengths"] == [2048, 4096, 8192, 16384, 32768]
    assert all(row["memory"] > 0 for row in report["rows"] if row["work"] == "forward and backward")


def test_operations_by_hand() -> None:
    """Of 4,096 tokens: two segments of 2,048 tokens, one of 4,096 with every second token, and so on."""
    case = dilated.Case.of(4096, dilated.parse_options(["--heads", "12", "--not-causal"]))
    kept = 2 * 2048**2 + 2048**2 + 1024**2 + 512**2 + 256**2
    assert dilated.flops("ours", dilated.FORWARD, case) == 4 * kept * 12 * 64
    assert dilated.flops("dense", dilated.BOTH, case) == 14 * 4096**2 * 12 * 64
    causal = dilated.Case.of(4096, dilated.parse_options([]))
    assert dilated.flops("dense", dilated.FORWARD, causal) == 2 * 4096 * 4097 * 8 * 64
    assert dilated.flops("layer", dilated.FORWARD, causal) is None


def test_attention_that_is_not_causal(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--lengths", "64", "--repeats", "1", "--threads", "1", "--heads", "3", "--not-causal"]
    assert dilated.main(words) == 0
    assert "TFLOP/s" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        dilated.parse_options([*words, "--sides", "layer"])
    assert "leave it out, as in --sides dense ours" in capsys.readouterr().err


def test_nothing_that_is_wrong_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(dilated.ALLOWED, torch.float32, -1.0)
    assert dilated.main(SMALL) == 1
    found = capsys.readouterr()
    assert "dilated attention is wrong" in found.err and not found.out


def numbers() -> dict[str, object]:
    """Ten bytes and a microsecond per token of attention, 20 and 3 of a layer, on top of 1,000 bytes."""
    rows = [
        {"side": side, "length": length, "work": work, "seconds": length * per_token, "memory": 1000 + length * bytes_}
        for side, per_token, bytes_ in (("ours", 1e-6, 10), ("layer", 3e-6, 20))
        for length in (1000, 2000)
        for work in ("forward", "forward and backward")
    ]
    return {
        "dtype": "bfloat16",
        "heads": 8,
        "head_dim": 64,
        "machine": "a machine",
        "segment_lengths": [2048, 4096],
        "dilation_ratios": [1, 2],
        "rows": rows,
    }


def test_a_billion_tokens_by_hand() -> None:
    task = billion_tokens.Task(numbers(), tokens=16384, memory=100_000, layers=2)
    assert task.branches == [(2048, 1), (4096, 2), (8192, 4), (16384, 8)]
    assert task.more_work == pytest.approx(1.875 / 1.5)
    assert task.bytes_per_token("ours") == 10
    assert task.seconds_per_token("ours", "forward") == pytest.approx(1.25e-6)
    assert task.seconds_per_token("layer", "forward and backward") == pytest.approx(3.25e-6)
    assert task.gathered(5000) == 2 * (2 * 2048 * 1024)
    attention, layers = list(billion_tokens.table(task))[2:]
    assert [cell.strip() for cell in attention.split("|")[2:7]] == ["10", "10,000", "2", "0.0 s", "0.0 s"]
    assert [cell.strip() for cell in layers.split("|")[2:5]] == ["1,044", "95", "173"]


def test_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="needs requirements/experiments.txt")
    path = tmp_path / "numbers.json"
    path.write_text(json.dumps(numbers()))
    monkeypatch.setattr(sys, "argv", ["dilated_figure.py", str(path)])
    assert dilated_figure.main() == 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
