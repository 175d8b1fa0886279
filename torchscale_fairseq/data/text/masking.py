"""Masking for masked language models: spans with a given mean length; some masked tokens are kept or replaced.

Spans: SpanBERT (arXiv:1907.10529, sec. 3.1) and T5 (arXiv:1910.10683, sec. 3.1.4); the treatment of masked tokens:
BERT (arXiv:1810.04805, sec. 3.1).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.text.pieces import MASK


@dataclass(frozen=True)
class Masking:
    """How samples are masked.

    Raises:
        InputError: a probability or the span length is out of its range.
    """

    mask_prob: float
    """Share of tokens to be predicted."""
    span_length: float
    """Mean tokens of a span; 1 masks tokens independently of their neighbours."""
    leave_unmasked_prob: float
    """Share of those that are left as they are."""
    random_token_prob: float
    """Share of those that become another token."""
    mask: int
    """Number of <mask>."""
    replacements: tuple[int, int]
    """Random tokens are drawn from this range; <mask> in it is left out."""

    def __post_init__(self) -> None:
        if not 0 < self.mask_prob < 1:
            raise InputError(f"--mask-prob ({self.mask_prob}) must lie between 0 and 1.")
        if not self.span_length >= 1:
            raise InputError(f"--span-length ({self.span_length}) must be at least 1.")
        kept, random = self.leave_unmasked_prob, self.random_token_prob
        if kept < 0 or random < 0 or kept + random > 1:
            raise InputError(
                f"--leave-unmasked-prob ({kept}) and --random-token-prob ({random}) must not be negative, and sum up "
                "to at most 1."
            )

    @classmethod
    def over(cls, dictionary: Any, **shares: float) -> "Masking":
        """Replacement of tokens of a fairseq dictionary, which become its <mask> or any that is no control symbol.

        Raises:
            InputError: as above.
        """
        return cls(mask=dictionary.index(MASK), replacements=(dictionary.nspecial, len(dictionary)), **shares)

    def __call__(
        self, tokens: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Mask a sample.

        Args:
            tokens: (seq,), without <s>.

        Returns:
            What the model reads (seq,), and where it is to predict the token (seq,).
        """
        wanted = draw_mask(rng, len(tokens), self.mask_prob, self.span_length)
        places = np.flatnonzero(wanted)
        fate = rng.random(len(places))
        masked = places[fate >= self.leave_unmasked_prob + self.random_token_prob]
        random = places[(fate >= self.leave_unmasked_prob) & (fate < self.leave_unmasked_prob + self.random_token_prob)]
        read = tokens.copy()
        read[masked] = self.mask
        low, high = self.replacements
        skips_mask = low <= self.mask < high
        drawn = rng.integers(low, high - skips_mask, len(random))
        read[random] = drawn + (skips_mask & (drawn >= self.mask))
        return read, wanted


def draw_mask(rng: np.random.Generator, length: int, mask_prob: float, span_length: float) -> NDArray[np.bool_]:
    """Which of ``length`` tokens are masked, (length,)."""
    covered, places = draw_spans(rng, length, mask_prob, span_length)
    wanted = np.zeros(length, dtype=np.bool_)
    wanted[np.repeat(places, covered) + _counting(covered)] = True
    return wanted


def draw_spans(
    rng: np.random.Generator, length: int, mask_prob: float, span_length: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Spans that cover ``mask_prob * length`` tokens, rounded at random, but at least one token.

    Every way to lay the spans out among the other tokens is equally likely; they may touch. With ``span_length`` 1
    that is a uniform draw of tokens.

    Returns:
        Length and first token of each span, in order.
    """
    masked = min(length, max(1, int(mask_prob * length + rng.random())))
    spans = min(masked, max(1, int(masked / span_length + rng.random())))
    cuts = np.sort(rng.permutation(masked - 1)[: spans - 1]) + 1
    covered = np.diff(cuts, prepend=0, append=masked)
    among = np.sort(rng.permutation(length - masked + spans)[:spans])
    return covered, among + np.cumsum(covered) - covered - np.arange(spans)


def _counting(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... for each of the sizes in turn."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
