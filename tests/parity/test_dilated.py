"""Dilated attention equals the official one under ``torchscale_compatible``."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers import assert_close, assert_gradient_close
from tests.parity.longnet import whole_until
from tests.parity.vectors import Case, cases, ids
from torchscale_fairseq import dilated_attention

CASES = cases("comp_dilated")


def dilated_layer(case: Case, x: Tensor, parameters: dict[str, Tensor], *, causal: bool) -> Tensor:
    """The official layer around it: projections, inner norm if there is one, output projection."""

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, parameters[f"{name}.weight"], parameters[f"{name}.bias"])

    config, heads = case.meta["config"], case.meta["build"]["heads"]
    branches = config["segment_length"], config["dilated_ratio"]
    query, key, value = (linear(f"{part}_proj", x).unflatten(-1, (heads, -1)) for part in "qkv")
    mixed = dilated_attention(query, key, value, *branches, causal=causal, torchscale_compatible=True).flatten(2)
    if "inner_attn_ln.weight" in parameters:
        norm = parameters["inner_attn_ln.weight"], parameters["inner_attn_ln.bias"]
        mixed = F.layer_norm(mixed, (x.size(-1),), *norm, eps=config["layernorm_eps"])
    return linear("out_proj", mixed)


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
