"""Defects of the official code that its vectors show and this package does not reproduce (docs/parity.md).

They are those of the repository's vectors: what another set shows depends on its shapes and options.
"""

import pytest
import torch

from tests.helpers import OFFICIAL_VECTORS, TOLERANCES
from tests.parity.longnet import shifted_from, whole_until
from tests.parity.models import loaded
from tests.parity.vectors import Case

VISIBLE = 1e-2
"""Differences above it are no rounding: the outputs are near 3."""


def official(name: str) -> Case:
    return Case(OFFICIAL_VECTORS / f"{name}.safetensors")


@pytest.mark.parametrize("name", ["ln_enc", "ln_enc_odd"])
@torch.no_grad()
def test_official_encoders_attend_to_padding(name: str) -> None:
    """Behind the last segment that is full of tokens."""
    case = official(name)
    mask = case["in/encoder_padding_mask"]
    apart = (loaded(case)(case["in/src_tokens"], mask)["encoder_out"] - case["out/encoder_out"]).abs()
    ends = {row: (whole_until(case, mask.size(1), real), real) for row, real in enumerate((~mask).sum(1).tolist())}
    rests = [apart[row, end:real] for row, (end, real) in ends.items() if end < real]
    assert rests and all(rest.max() > VISIBLE for rest in rests)


@torch.no_grad()
def test_official_code_shifts_segments_that_their_ratio_does_not_divide() -> None:
    case = official("ln_dec_misaligned")
    tokens = case["in/prev_output_tokens"]
    apart = (loaded(case)(tokens)[0] - case["out/logits"]).abs()
    assert apart[:, shifted_from(case, tokens.size(1)) :].max() > VISIBLE


@pytest.mark.parametrize("name", ["ret_small", "ret_official_init"])
def test_official_chunkwise_form_departs_at_small_weights(name: str) -> None:
    """From the official parallel form, by ten times the bound that ours meets."""
    case = official(name)
    chunkwise, parallel = case["out/logits_chunkwise"], case["out/logits_parallel"]
    assert (chunkwise - parallel).abs().max() > 10 * TOLERANCES["parity_retention"].atol * parallel.abs().max()
