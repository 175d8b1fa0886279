"""Attention rollout against matrices that are written out."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.core.slide_encoders import slides, small
from tests.helpers import assert_close
from torchscale_fairseq.core.ops.dilated_pattern import shown_keys
from torchscale_fairseq.data.slides.attribution import attention_rollout


def matrix(attention: Any, x: Tensor) -> Tensor:
    """(batch, seq, seq), what queries take from keys, averaged over the heads."""
    projections = attention.q_proj, attention.k_proj
    query, key = (projection(x).unflatten(-1, (attention.num_heads, -1)) for projection in projections)
    shown = torch.stack([shown_keys(query, branch, None) for branch in attention.branches]).sum(0)
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.size(-1) ** -0.5 + shown.log()
    return scores.softmax(-1).nan_to_num().mean(1)


@pytest.mark.parametrize(
    "options", [{}, {"global_pool": True}, {"feature_layers": "[1,2]"}], ids=["class-token", "mean", "layers"]
)
@torch.no_grad()
def test_rollout_multiplies_the_layers(options: dict[str, Any]) -> None:
    model = small(**options).double()
    features, coords = slides(1, 21)
    inputs, products = {"features": features.double(), "coords": coords}, []
    product = torch.eye(22, dtype=torch.float64)
    states: list[Tensor] = []
    layers: list[Any] = list(model.encoder.layers)
    hooks = [layer.self_attn.register_forward_pre_hook(lambda _, args: states.append(args[0])) for layer in layers]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    for layer, x in zip(layers, states, strict=True):
        product = (matrix(layer.self_attn, x)[0] + torch.eye(22)) / 2 @ product
        products.append(product)
    rows = [p[1:].mean(0) if options.get("global_pool") else p[0] for p in products]
    expected = torch.stack(rows).mean(0) if "feature_layers" in options else rows[-1]
    found = attention_rollout(model, inputs)
    assert_close(found, expected[1:], "float64", "rollout")
    assert found.min() >= 0 and found.sum() <= 1 + 1e-9
