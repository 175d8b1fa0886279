"""benchmarks/retention_inputs.py on a tiny layer."""

import shlex

import pytest
import torch

from benchmarks import packed_documents, retention_inputs
from benchmarks.report import DisagreementError
from benchmarks.retention_gpu import mean_error
from benchmarks.retention_steps import Case

TINY = shlex.split("--device cpu --width 64 --value-width 96 --heads 2 --repeats 1 --lengths 40")


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    retention_inputs.main(TINY)
    lines = [line.split("|")[2].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("| 40 ")]
    assert lines == list(retention_inputs.SIDES)


def test_sides_differ_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding and other documents are not seen; a state is."""
    monkeypatch.setattr(packed_documents, "MEDIAN", 10)
    case = Case(40, 64, 96, 2)
    outputs = {side: retention_inputs.layer_step(case, side, torch.float32)() for side in retention_inputs.SIDES}
    plain = outputs.pop(retention_inputs.PLAIN)["output"]
    assert all(not torch.allclose(found["output"], plain, atol=1e-3) for found in outputs.values())


def test_nothing_that_is_wrong_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_inputs, "ALLOWED", -1.0)
    with pytest.raises(DisagreementError, match="plain rows: relative RMS"):
        retention_inputs.main(TINY)


@pytest.mark.parametrize("side", retention_inputs.SIDES)
def test_one_uncertain_token_is_no_disagreement(side: str) -> None:
    """With this seed the query of the first token hardly meets its key; half precision changes its gradient by 13% of
    the norm of all gradients."""
    assert retention_inputs.check_agreement(Case(60, 64, 96, 2, seed=4), side, torch.bfloat16) > 0


def test_every_token_counts_the_same() -> None:
    exact = torch.ones(1, 100, 4)
    exact[:, 7] = 1e4
    found = exact.clone()
    found[:, 7] *= 1.5
    assert mean_error(found, exact) == pytest.approx(0.05)
    assert mean_error(1.5 * exact, exact) == pytest.approx(0.5)
    exact[:, 8:10] = 0.0  # padding
    assert mean_error(exact, exact) == 0.0
