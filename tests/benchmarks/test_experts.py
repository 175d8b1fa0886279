"""benchmarks/compare.py experts on a tiny layer."""

import pytest
import torch

from benchmarks import compare, experts, official
from benchmarks.report import DENSE, OURS, DisagreementError


def test_the_layers_agree_and_are_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchscale", reason=f"needs {official.INSTALL}")
    monkeypatch.setattr(experts, "in_fresh_process", lambda function, *arguments: 2**20)
    assert compare.main(["experts", "--tokens", "64", "--repeats", "1", "--threads", "1"]) == 0
    text = capsys.readouterr().out
    assert "32 experts, top-2, 64 tokens: outputs differ by" in text
    assert text.count(DENSE) >= 2 and "ours, 128 experts" in text


def test_a_disagreement_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchscale", reason=f"needs {official.INSTALL}")
    official.load_official(None)
    experts.prepare_official_experts()
    case = experts.ExpertCase(16, experts=4)
    build = experts.build

    def wrong(side: str, case: experts.ExpertCase) -> torch.nn.Module:
        layer = build(side, case)
        if side == OURS:
            layer.options = layer.options.__class__(**{**vars(layer.options), "normalize_before_dropping": True})
        return layer

    monkeypatch.setattr(experts, "build", wrong)
    with pytest.raises(DisagreementError, match="outputs differ by"):
        experts.check_agreement(case)
