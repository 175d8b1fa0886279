"""Loss, risk and concordance of survival in discrete time, against cases worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from tests.helpers import assert_close, pair
from torchscale_fairseq.core.ops.survival import concordance_index, risk, survival_loss


def logits(*hazards: float) -> Tensor:
    return torch.tensor([hazards], dtype=torch.float64).logit()


@pytest.mark.parametrize(
    ("bin_", "event", "likelihood"),
    [
        (0, True, 0.5),
        (1, True, 0.5 * 0.2),
        (2, True, 0.5 * 0.8 * 0.9),
        (0, False, 0.5),
        (1, False, 0.5 * 0.8),
        (2, False, 0.5 * 0.8 * 0.1),
    ],
)
def test_loss_by_hand(bin_: int, event: bool, likelihood: float) -> None:
    """Hazards 0.5, 0.2, 0.9: the curve is 0.5, 0.4, 0.04."""
    loss = survival_loss(logits(0.5, 0.2, 0.9), torch.tensor([bin_]), torch.tensor([event]))
    assert_close(loss, torch.tensor([-math.log(likelihood)], dtype=torch.float64), "float64")


def test_loss_is_the_written_out_likelihood() -> None:
    """Values and gradients, with hazards and curve as the paper writes them."""
    torch.manual_seed(1)
    scores = torch.randn(50, 4, dtype=torch.float64, requires_grad=True)
    bins, events = torch.randint(4, (50,)), torch.rand(50) < 0.6
    hazards = scores.sigmoid()
    curve = torch.cat([torch.ones(50, 1), (1 - hazards).cumprod(1)], 1)  # S(-1), S(0), ...
    before, at = curve.gather(1, bins[:, None])[:, 0], curve.gather(1, bins[:, None] + 1)[:, 0]
    written_out = -torch.where(events, (before * hazards.gather(1, bins[:, None])[:, 0]).log(), at.log())
    loss = survival_loss(scores, bins, events)
    assert_close(loss, written_out, "float64")
    gradients = (torch.autograd.grad(x.sum(), scores, retain_graph=True)[0] for x in (loss, written_out))
    assert_close(*pair(gradients), "float64", "gradient")


def test_probabilities_of_all_that_can_happen_sum_to_one() -> None:
    """An event in one of the bins, or none by the end of the last."""
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.1]], dtype=torch.float64).expand(5, 4)
    bins, events = torch.tensor([0, 1, 2, 3, 3]), torch.tensor([True] * 4 + [False])
    assert float(survival_loss(scores, bins, events).neg().exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_sure_and_wrong_hazards_have_finite_losses_and_gradients() -> None:
    scores = torch.tensor([[200.0, -200.0]], requires_grad=True)
    for bin_, event, expected in ((1, True, 400.0), (1, False, 200.0), (0, True, 0.0)):
        loss = survival_loss(scores, torch.tensor([bin_]), torch.tensor([event]))
        assert loss.tolist() == [expected]
        assert torch.autograd.grad(loss.sum(), scores)[0].isfinite().all()


def test_risk_by_hand() -> None:
    assert_close(risk(logits(0.5, 0.2, 0.9)), torch.tensor([-0.94], dtype=torch.float64), "float64")
    certain = risk(torch.tensor([[1000.0, 0.0], [-1000.0, -1000.0]]))
    assert certain.tolist() == [0.0, -2.0]


@pytest.mark.parametrize(
    ("risks", "times", "events", "expected"),
    [
        ([3, 2, 1], [1, 2, 3], [1, 1, 1], 1.0),
        ([1, 2, 3], [1, 2, 3], [1, 1, 1], 0.0),
        ([2, 2, 2], [1, 2, 3], [1, 1, 1], 0.5),  # equal risks
        ([3, 1, 1], [1, 2, 3], [1, 1, 1], 2.5 / 3),
        ([1, 2, 3], [1, 2, 3], [0, 1, 1], 0.0),  # (2, 3) is the only pair
        ([1, 3, 2], [1, 2, 3], [0, 1, 0], 1.0),  # nothing is known of the first
        ([2, 2, 1], [5, 5, 5], [1, 0, 1], 0.25),  # at one time: event before censored, (1, 2) and (3, 2)
        ([2, 1], [5, 5], [1, 1], math.nan),  # two events at one time
        ([2, 1], [1, 2], [0, 0], math.nan),
        ([5, 1, 4, 2], [1, 2, 2, 3], [1, 1, 0, 1], 3 / 5),  # wrong: (2, 3), (2, 4)
    ],
)
def test_concordance_by_hand(risks: list[float], times: list[float], events: list[int], expected: float) -> None:
    seen = torch.tensor(events, dtype=torch.bool)
    got = concordance_index(torch.tensor(risks).double(), torch.tensor(times).double(), seen)
    assert got == pytest.approx(expected, nan_ok=True)


def test_concordance_counts_pairs() -> None:
    """Against the definition, pair by pair, with many ties."""
    torch.manual_seed(1)
    risks, times = torch.randint(5, (40,)), torch.randint(6, (40,))
    events = torch.rand(40) < 0.6
    pairs = right = 0.0
    for i in range(40):
        for j in range(40):
            if events[i] and (times[i] < times[j] or (times[i] == times[j] and not events[j])):
                pairs += 1
                right += 1.0 if risks[i] > risks[j] else 0.5 if risks[i] == risks[j] else 0.0
    assert concordance_index(risks, times, events) == pytest.approx(right / pairs, abs=1e-12)
