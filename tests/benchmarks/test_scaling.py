"""benchmarks/scaling: figures of logs, kept measurements, and whole runs at a small size."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq.logging import metrics

from benchmarks.limited import RunError, error_line, output_of
from benchmarks.report import DisagreementError
from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import figure
from benchmarks.scaling.checks import CHECKS, worst_difference
from benchmarks.scaling.log import Logged, read_log
from benchmarks.scaling.results import Results
from benchmarks.scaling.rows import ROWS, TOY_LENGTH, Row
from benchmarks.sharding import Measured, Recorder

LOGGED = Logged(8000.0, 400e12, 50.5, 7e9, 0.0)
TOY = ["--device", "cpu", "--toy"]


def line(speed: int, tflops: float, free: float) -> str:
    figures = {"tps_device": str(speed), "tflops": str(tflops), "gb_free": str(free)}
    return f"2026 | INFO | train_inner | {json.dumps(figures)}\n"


def test_figures_of_a_log() -> None:
    start = "num. shared model params: 1,315,000 (num. trained: 1)\nnum. expert model params: 64 (num. trained: 64)\n"
    start += "rank   0: capabilities =  9.0  ; total memory = 139.800 GB ; name = a GPU\n"
    text = start + line(1, 0.1, 100.0) + line(700, 300.0, 89.3) + line(900, 400.0, 90.0)
    assert read_log(text) == Logged(800.0, 350e12, 139.8 - 89.3, 1_315_000.0, 64.0)
    assert read_log(start + line(1, 0.1, 100.0)) is None


def test_programs_that_fail_or_take_too_long(tmp_path: Path) -> None:
    """The launcher's summary, which comes last, is not the reason."""
    failing = "echo 'ValueError: bad batch'; echo 'x.ChildFailedError: '; exit 3"
    with pytest.raises(RunError, match="failed: ValueError: bad batch"):
        output_of(60, ["sh", "-c", failing], tmp_path / "output")
    start = time.monotonic()
    with pytest.raises(RunError, match=r"took longer than 0\.2 s"):
        output_of(0.2, ["sh", "-c", "trap 'echo told; exit' TERM; sleep 60 & wait"], tmp_path / "output")
    assert time.monotonic() - start < 30 and (tmp_path / "output").read_text() == "told\n"
    assert error_line("") == "no output"


def measured(*losses: float) -> Measured:
    return Measured(1.0, 0, list(losses), [2 * loss for loss in losses], [], 0.0)


def test_runs_that_differ_are_refused() -> None:
    whole = measured(3.0, 2.0, 1.0)
    assert worst_difference(measured(2.0, 1.0 + 1e-6), whole, after=1) == pytest.approx(1e-6, rel=1e-3)
    for found in (measured(2.0), measured(2.0, 1.001), measured(2.0, float("nan"))):
        with pytest.raises(DisagreementError):
            worst_difference(found, whole, after=1)


def test_losses_are_compared_with_all_their_digits() -> None:
    """fairseq rounds those that a step returns."""
    recorder = Recorder(on_gpu=False)

    def step(*_: object) -> dict[str, float]:
        metrics.log_scalar("loss", 1.23456, round=3)
        metrics.log_scalar("gnorm", 0.5, round=3)
        return {"loss": 1.235}

    with metrics.aggregate("train_inner", new_root=True):
        recorder.updating(step)(argparse.Namespace(_speed=None), [])
    assert recorder.found["losses"] == [1.23456] and recorder.found["norms"] == [0.5]


def test_a_measurement_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[tuple[str, int]] = []

    def speed(row: Row, processes: int, *_: Any) -> Logged:
        runs.append((row.name, processes))
        if len(runs) == 2:
            raise RunError("took longer than 180 s")
        return LOGGED

    monkeypatch.setattr(scaling, "speed", speed)
    words = [*TOY, "--only", "sharded-7b", "killed", "--processes", "2", "--results", str(tmp_path / "results.json")]
    assert scaling.main(words) == 0
    first = capsys.readouterr().out
    assert "| 2 | 8,000 | 16,000 | 40.4% | 50.5 |  | 45 % of 989 TFLOP/s | 0 |" in first and "| not measured |" in first
    assert scaling.main([*words, "--only", "sharded-7b", "--processes", "2", "4"]) == 1
    assert "| 4 | took longer than 180 s |" in capsys.readouterr().out
    assert runs == [("sharded-7b", 2), ("sharded-7b", 4)]


def test_rows_and_checks() -> None:
    names = [*(row.name for row in ROWS), *(check.name for check in CHECKS)]
    assert len(set(names)) == len(names) and {row.baseline for row in ROWS} <= {"", *names}
    longnet = next(row for row in ROWS if row.splits_sequences)
    assert str(8 * longnet.length) in longnet.words(8, toy=False) and longnet.tokens(toy=True) == TOY_LENGTH
    for row in ROWS:
        assert "--bf16" in row.words(2, toy=False) and "--bf16" not in row.words(2, toy=True)
        assert row.prediction is None or row.prediction(LOGGED, 8192, 8) > 0


def test_the_figure_has_points_and_lines(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = Results.read(tmp_path / "results.json")
    with pytest.raises(SystemExit, match="no measured points"):
        figure.save(results, tmp_path / "scaling.png")
    for processes in (1, 8):
        results.add(f"sharded-7b/{processes}", LOGGED, 1.0, "a machine")
    row = next(row for row in ROWS if row.name == "sharded-7b")
    assert Results.read(results.path).measured(row) == {1: LOGGED, 8: LOGGED}
    assert list(figure.predicted(results, row)) == [1, 2, 4, 8]
    figure.save(results, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 1000


@pytest.mark.slow
def test_everything_at_a_small_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another call measures nothing more."""
    words = [*TOY, "--processes", "1", "2", "--results", str(tmp_path / "results.json")]
    assert scaling.main(words) == 0, capsys.readouterr()
    seen = capsys.readouterr()
    assert "not measured" not in seen.out and "ended with its message" in seen.out
    assert scaling.main(words) == 0 and not capsys.readouterr().err


def test_peak_is_of_all_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """fairseq starts to count anew after each."""
    recorder, peaks = Recorder(on_gpu=True), iter([3, 5, 1])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(peaks))
    reset = recorder.resetting(lambda *_: None)
    for _ in range(3):
        reset()
    assert recorder.found["peak"] == 5
