"""benchmarks/optimizers.py on two parameters: its table, and what it refuses to time."""

import pytest
import torch

from benchmarks import optimizers

WORDS = ["--repeats", "1"]


@pytest.fixture(autouse=True)
def few_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fairseq")

    def parameters(layers: int, device: str) -> list[torch.Tensor]:
        learnt = [torch.randn(5, 3), torch.randn(7)]
        for p in learnt:
            p.grad = torch.randn_like(p)
        return learnt

    monkeypatch.setattr(optimizers, "parameters", parameters)


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert optimizers.main(WORDS) == 0
    printed = capsys.readouterr().out
    for side in ("fairseq adam", "fused", "foreach"):
        assert f"| {side} " in printed
    assert printed.count("times as fast; parameters differ by") == 2


def test_nothing_that_differs_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(optimizers, "ALLOWED", -1.0)
    assert optimizers.main(WORDS) == 1
    found = capsys.readouterr()
    assert "fused and fairseq adam disagree" in found.err and not found.out
