"""Dilated attention equals the official one under ``torchscale_compatible``."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers import assert_close, assert_gradient_close
from tests.parity.vectors import Case, cases
from torchscale_fairseq import dilated_attention

CASES = cases("comp_dilated")
SEGMENTS, RATIOS, HEADS = [8, 16], [1, 2], 4


def layer(case: Case, x: Tensor, parameters: dict[str, Tensor], *, causal: bool) -> Tensor:
    """The official layer around it: projections, inner norm, output projection."""

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, parameters[f"{name}.weight"], parameters[f"{name}.bias"])

    query, key, value = (linear(f"{part}_proj", x).unflatten(-1, (HEADS, -1)) for part in "qkv")
    mixed = dilated_attention(query, key, value, SEGMENTS, RATIOS, causal=causal, torchscale_compatible=True)
    norm = parameters["inner_attn_ln.weight"], parameters["inner_attn_ln.bias"]
    return linear("out_proj", F.layer_norm(mixed.flatten(2), (x.size(-1),), *norm))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_causal(case: Case) -> None:
    x = case["in/x"].clone().requires_grad_()
    parameters = {name: value.clone().requires_grad_() for name, value in case.group("param/").items()}
    y = layer(case, x, parameters, causal=True)
    assert_close(y, case["out/y_causal"], "parity", "y_causal")
    (y - case["in/loss_target"]).square().mean().backward()
    for name, gradient in case.group("grad/causal.").items():
        actual = x.grad if name == "x" else parameters[name].grad
        assert actual is not None
        assert_gradient_close(actual, gradient, name)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bidirectional(case: Case) -> None:
    """Where segments are whole: the official code lets queries of the last one see what fills it."""
    whole = case["in/x"].size(1) // max(SEGMENTS) * max(SEGMENTS)
    with torch.no_grad():
        y = layer(case, case["in/x"], case.group("param/"), causal=False)
    assert_close(y[:, :whole], case["out/y_full"][:, :whole], "parity", "y_full")
