"""Masking: what share is masked, in spans of what lengths, and what becomes of it, by chi-square tests."""

from collections import Counter
from math import comb
from typing import Any

import numpy as np
import pytest
from scipy import stats

from torchscale_fairseq.data.text.masking import Masking, draw_mask, draw_spans

SIGNIFICANCE = 1e-4
"""Each of these tests, with its fixed seed, would fail a right implementation this seldom with another seed."""
LENGTH = 100
DRAWS = 3000


def masking(**options: Any) -> Masking:
    usual = {"mask_prob": 0.15, "span_length": 1.0, "leave_unmasked_prob": 0.1, "random_token_prob": 0.1}
    return Masking(**{**usual, **options}, mask=14, replacements=(4, 20))


def assert_distributed(observed: list[float], shares: list[float]) -> None:
    expected = np.array(shares) / sum(shares) * sum(observed)
    assert expected.min() >= 5
    assert stats.chisquare(observed, expected).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("span_length", [1.0, 3.0])
@pytest.mark.parametrize("mask_prob", [0.15, 0.333])
def test_share_of_masked_tokens(mask_prob: float, span_length: float) -> None:
    """The number of masked tokens of a sample is its expectation rounded up or down at random."""
    rng = np.random.default_rng(1)
    counts = Counter(int(draw_mask(rng, LENGTH, mask_prob, span_length).sum()) for _ in range(DRAWS))
    whole, rest = divmod(mask_prob * LENGTH, 1)
    if rest < 1e-9:
        assert counts == {int(whole): DRAWS}
    else:
        assert set(counts) == {int(whole), int(whole) + 1}
        assert_distributed([counts[int(whole)], counts[int(whole) + 1]], [1 - rest, rest])


@pytest.mark.parametrize("span_length", [1.0, 3.0])
def test_every_place_is_as_likely(span_length: float) -> None:
    """Over groups of ten tokens away from the ends, which spans reach less often."""
    rng = np.random.default_rng(2)
    masks = np.stack([draw_mask(rng, LENGTH, 0.15, span_length) for _ in range(DRAWS)])
    by_place = masks.sum(0)[10:90].reshape(8, 10).sum(1)
    spread = by_place.std() / by_place.mean()
    assert spread < 4 * span_length**0.5 / np.sqrt(DRAWS * 10 * 0.15)


def test_tokens_alone_are_drawn_independently_of_their_neighbours() -> None:
    """With a span length of 1, neighbours are masked as often as in a draw without replacement."""
    rng = np.random.default_rng(3)
    masks = np.stack([draw_mask(rng, LENGTH, 0.15, 1.0) for _ in range(DRAWS)])
    both = int((masks[:, ::2] & masks[:, 1::2]).sum())
    pairs = DRAWS * 50
    assert_distributed([both, pairs - both], [15 * 14 / (100 * 99), 1 - 15 * 14 / (100 * 99)])


def test_lengths_of_spans() -> None:
    """15 masked tokens in 5 spans: lengths are those of a random composition, with a mean of 3."""
    rng = np.random.default_rng(4)
    lengths: Counter[int] = Counter()
    for _ in range(DRAWS):
        covered, places = draw_spans(rng, LENGTH, 0.15, 3.0)
        assert len(covered) == 5 and covered.sum() == 15 and covered.min() >= 1
        assert (np.diff(places) >= covered[:-1]).all() and places[-1] + covered[-1] <= LENGTH
        lengths.update([int(covered[0])])
    shares = {length: comb(14 - length, 3) / comb(14, 4) for length in range(1, 12)}
    rare = [length for length in shares if shares[length] * DRAWS < 20]
    common = [length for length in shares if length not in rare]
    assert_distributed(
        [*(lengths[n] for n in common), sum(lengths[n] for n in rare)],
        [*(shares[n] for n in common), sum(shares[n] for n in rare)],
    )


def test_mean_length_of_spans_that_do_not_divide() -> None:
    """15 tokens in spans of 4 are 3 or 4 spans, 3.75 in the mean."""
    rng = np.random.default_rng(5)
    counts = Counter(len(draw_spans(rng, LENGTH, 0.15, 4.0)[0]) for _ in range(DRAWS))
    assert_distributed([counts[3], counts[4]], [0.25, 0.75])


def test_what_becomes_of_masked_tokens() -> None:
    rng = np.random.default_rng(6)
    masks = masking(leave_unmasked_prob=0.2, random_token_prob=0.3)
    fates: Counter[str] = Counter()
    drawn: Counter[int] = Counter()
    for _ in range(DRAWS):
        tokens = np.full(LENGTH, 99)
        read, wanted = masks(tokens, rng)
        assert (tokens == 99).all() and (read[~wanted] == 99).all()
        for token in read[wanted].tolist():
            fates["kept" if token == 99 else "mask" if token == 14 else "random"] += 1
            if token not in (99, 14):
                drawn[token] += 1
    assert_distributed([fates["mask"], fates["kept"], fates["random"]], [0.5, 0.2, 0.3])
    assert set(drawn) == set(range(4, 20)) - {14}
    assert_distributed([drawn[token] for token in sorted(drawn)], [1] * 15)


def test_at_least_one_token_is_masked() -> None:
    rng = np.random.default_rng(7)
    for length in (1, 2, 3):
        assert {int(draw_mask(rng, length, 0.01, 3.0).sum()) for _ in range(20)} == {1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_prob": 0.0}, r"--mask-prob \(0.0\) must lie between 0 and 1"),
        ({"mask_prob": 1.0}, r"--mask-prob \(1.0\)"),
        ({"span_length": 0.5}, r"--span-length \(0.5\) must be at least 1"),
        ({"leave_unmasked_prob": 0.6, "random_token_prob": 0.6}, r"--leave-unmasked-prob \(0.6\) and --random"),
        ({"random_token_prob": -0.1}, r"--random-token-prob \(-0.1\) must not be negative"),
    ],
)
def test_refuses_what_is_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masking(**options)
