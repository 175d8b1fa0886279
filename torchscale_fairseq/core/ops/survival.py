"""Survival in discrete time: loss, risk, and how well risks are ordered.

Time is cut into bins, and a model scores the hazard of each: h(b) = sigmoid(score of b) is the probability that the
event comes in bin b if it has not come before, and S(b) = (1 - h(0)) ... (1 - h(b)) that it comes after bin b.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def survival_loss(scores: Tensor, bins: Tensor, events: Tensor) -> Tensor:
    """Negative log-likelihood in nats: -log S(b - 1) - log h(b) of an event in bin b; -log S(b) of a subject that was
    lost sight of in bin b (censored) before an event.

    Zadeh and Schmid, "Bias in cross-entropy-based training of deep survival networks" (IEEE TPAMI 2020).

    Args:
        scores: (subjects, bins), logits of hazards.
        bins: (subjects,), of the event or of the censoring.
        events: (subjects,), True for an event, False for a censored one.

    Returns:
        (subjects,).
    """
    survived = torch.arange(scores.size(-1), device=scores.device) < (bins + ~events).unsqueeze(-1)
    hazard = scores.gather(-1, bins.unsqueeze(-1)).squeeze(-1)
    return -(F.logsigmoid(-scores) * survived).sum(-1) - F.logsigmoid(hazard) * events


def survival_curve(scores: Tensor) -> Tensor:
    """The probability that the event comes after each bin.

    Args:
        scores: (..., bins), logits of hazards.

    Returns:
        (..., bins).
    """
    return F.logsigmoid(-scores).cumsum(-1).exp()


def risk(scores: Tensor) -> Tensor:
    """Minus the sum of the survival curve, which is minus the expected number of bins survived.

    Args:
        scores: (..., bins), logits of hazards.

    Returns:
        (...), from minus the number of bins to 0; the higher, the sooner the event.
    """
    return -survival_curve(scores).sum(-1)


def concordance_index(risks: Tensor, times: Tensor, events: Tensor) -> float:
    """Harrell's C: the share of comparable pairs in which the subject with the earlier event has the higher risk; equal
    risks count half.

    A pair is comparable if the earlier time is an observed event. With tied times it is comparable only if exactly one
    of the two is censored (its event must have come later). Harrell et al., "Evaluating the yield of medical tests"
    (JAMA 1982).

    Args:
        risks, times: (subjects,).
        events: (subjects,), True for an event, False for a censored one.

    Returns:
        From 0 to 1; NaN if there is no such pair.
    """
    pairs, right = 0, 0.0
    for first in events.nonzero().flatten().tolist():
        later = (times > times[first]) | ((times == times[first]) & ~events)
        others = risks[later]
        pairs += others.numel()
        right += float((others < risks[first]).sum()) + 0.5 * float((others == risks[first]).sum())
    return right / pairs if pairs else float("nan")
