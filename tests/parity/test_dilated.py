"""Dilated attention equals the official one under ``torchscale_compatible``."""

import pytest
import torch

from tests.helpers import assert_close, assert_gradient_close
from tests.parity.longnet import dilated_layer, whole_until
from tests.parity.vectors import Case, cases, ids

CASES = cases("comp_dilated")


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_causal(case: Case) -> None:
    x = case["in/x"].clone().requires_grad_()
    parameters = {name: value.clone().requires_grad_() for name, value in case.group("param/").items()}
    y = dilated_layer(case, x, parameters, causal=True)
    assert_close(y, case["out/y_causal"], "parity", "y_causal")
    (y - case["in/loss_target"]).square().mean().backward()
    for name, gradient in case.group("grad/causal.").items():
        actual = x.grad if name == "x" else parameters[name].grad
        assert actual is not None
        assert_gradient_close(actual, gradient, name)


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
@torch.no_grad()
def test_bidirectional(case: Case) -> None:
    """Where segments are whole: the official code lets queries of the last one see what fills it."""
    length = case["in/x"].size(1)
    whole = whole_until(case, length, length)
    y = dilated_layer(case, case["in/x"], case.group("param/"), causal=False)
    assert_close(y[:, :whole], case["out/y_full"][:, :whole], "parity", "y_full")
