"""How often a language model retrieves needles, over lengths and depths."""

import random
from collections.abc import Sequence
from typing import Any

import torch

from .needles import NeedleTexts, Row

Shares = dict[tuple[int, float], float]
"""Shares of retrieved needles, from 0 to 1, by length in tokens and depth."""


@torch.inference_mode()
def retrieved(decoder: Any, rows: Sequence[Row]) -> list[bool]:
    """Whether greedy decoding gives each row's answer, in one pass over question and answer.

    Every token of the answer is the likeliest one after the text and the tokens of the answer before it, which is
    what greedy decoding finds.

    Args:
        decoder: of the core.
        rows: of one length.
    """
    device = next(decoder.parameters()).device
    tokens = torch.tensor([row.tokens for row in rows], device=device)
    longest = max(row.answer for row in rows)
    features, _ = decoder(tokens[:, :-1], features_only=True)
    likeliest = decoder.output_layer(features[:, -longest:]).argmax(-1)
    correct = likeliest == tokens[:, -longest:]
    return [bool(correct[index, -row.answer :].all()) for index, row in enumerate(rows)]


def shares_at(
    decoder: Any, texts: NeedleTexts, length: int, depths: Sequence[float], *, trials: int, max_tokens: int, seed: int
) -> Shares:
    """Shares of retrieved needles in texts of one length.

    Args:
        decoder: of the core.
        texts: to ask about.
        length: tokens of each text.
        depths: of the needles, from 0 to 1.
        trials: texts per depth.
        max_tokens: of a batch; a longer text is a batch of its own.
        seed: of the texts.
    """
    cells = [(depth, trial) for depth in depths for trial in range(trials)]
    rows = [texts.row(length, depth, random.Random(f"{seed} {length} {depth} {trial}")) for depth, trial in cells]
    size = max(1, max_tokens // length)
    found = [hit for start in range(0, len(rows), size) for hit in retrieved(decoder, rows[start : start + size])]
    return {
        (length, depth): sum(found[index * trials : (index + 1) * trials]) / trials
        for index, depth in enumerate(depths)
    }
