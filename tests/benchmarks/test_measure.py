"""benchmarks/measure.py: turns, medians and memory."""

from functools import partial

import pytest
import torch

from benchmarks import measure, report, training
from benchmarks.decoders import Case, Size


def test_sides_take_turns_and_medians_count(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = []
    now = 0.0
    durations = {"a": iter([9.0, 1.0, 7.0, 2.0]), "b": iter([9.0, 3.0, 3.0, 5.0])}

    def run(side: str) -> None:
        nonlocal now
        turns.append(side)
        now += next(durations[side])

    monkeypatch.setattr("time.perf_counter", lambda: now)
    seconds = measure.time_in_turns({side: partial(run, side) for side in "ab"}, warmups=1, repeats=3)
    assert turns == list("abababab")
    assert seconds == {"a": 2.0, "b": 3.0}


def test_memory_of_a_step() -> None:
    size = Size(layers=1, width=64, heads=2, ffn_width=128, vocab_size=20_000, tokens_per_step=256)
    memory = measure.in_fresh_process(
        training.step_memory, Case("", size, 64, "cpu", torch.float32, seed=1), report.OURS, None
    )
    weights, logits = 20_000 * 64 * 4, 20_000 * 256 * 4
    assert 2 * weights + 2 * logits < memory < 4 * weights + 10 * logits
