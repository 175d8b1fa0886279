"""Mixture of experts equals the official one under ``torchscale_compatible``."""

import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from tests.helpers import assert_close
from tests.parity.experts import build_layer, build_router, check_model, drawing, routing_options
from tests.parity.models import incremental_logits, loaded
from tests.parity.vectors import (
    Case,
    cases,
    check_gradients,
    compare,
    gradients_by_name,
    ids,
    loss_of,
)
from torchscale_fairseq.core.ops.routing import Routing, balance_loss, route, statistics
from torchscale_fairseq.core.ops.sparse_clip import sparse_norm, sum_of_squares

GATES = cases("moe_top*")
LAYERS = cases("moe_layer_*")
ENCODERS = cases("enc_*moe*")
DECODERS = cases("dec_*moe*")
RETNETS = cases("ret_moe")


def dense(routing: Routing, capacity: int) -> Tensor:
    """The official combine weights, (tokens, experts, capacity)."""
    tokens, experts = routing.probability.shape
    first = (routing.load.cumsum(0) - routing.load).repeat_interleave(routing.load)
    place = torch.arange(len(routing.order)) - first
    expert = routing.expert.T.reshape(-1)[routing.order]
    combine = routing.weight.new_zeros(tokens, experts, capacity)
    return combine.index_put((routing.token, expert, place), routing.weight)


def official_statistics(routing: Routing) -> dict[str, Tensor]:
    """The official figures, from ours: in percent but for entropy and counts."""
    experts = routing.probability.size(1)
    fifth = math.ceil(experts / 5)
    found = {"entropy_gating": statistics(routing)["entropy"]}
    for choice in range(routing.expert.size(1)):
        candidate, kept = routing.candidate[:, choice], routing.kept[:, choice]
        share = 100 * torch.bincount(routing.expert[:, choice], minlength=experts) / len(routing.expert)
        share = share.sort(descending=True).values
        name = f"expert{choice + 1}"
        found |= {
            f"overflow_{name}": 100 * (candidate & ~kept).sum() / candidate.sum(),
            f"unused_{name}_count": (share == 0).sum(),
            f"{name}_balance_top": share[:fifth].sum(),
            f"{name}_balance_bottom": share[-fifth:].sum(),
        }
    return found


def check_statistics(case: Case, routing: Routing, prefix: str) -> None:
    found, expected = official_statistics(routing), case.group(prefix)
    assert expected
    for name, value in expected.items():
        assert name in found, name
        assert_close(found[name].float().reshape(1), value.float(), "parity_exact", name)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("case", GATES, ids=ids(GATES))
def test_gate(case: Case, mode: str) -> None:
    build = case.meta["build"]
    width, experts = build["args"]
    kwargs = build["kwargs"]
    chosen = routing_options(build["cls"], kwargs)
    router = build_router(width, experts, xmoe=kwargs.get("use_xmoe", False))
    router.load_state_dict(case.group("param/"))
    padding = next((case[name] for name in ("in/mask", "in/input_mask") if case.get(name) is not None), None)
    x = case["in/x"].clone().requires_grad_()
    capacity = chosen.capacity(len(x), experts, training=mode == "train")
    assert capacity == case.meta["extra"][mode]["capacity"]

    torch.manual_seed(case.meta["extra"]["manual_seed"])
    draws = case.get(f"in/{mode}.uniform"), case.get(f"in/{mode}.gumbel")
    with drawing(*draws):
        routing = route(
            router(x)[0],
            top_k=chosen.top_k,
            capacity=capacity,
            policy=chosen.policy,
            normalize_before_dropping=chosen.normalize_before_dropping,
            prioritized=chosen.prioritized,
            padding=padding,
        )
    combine = dense(routing, capacity)
    assert torch.equal(combine.bool(), case[f"out/{mode}.dispatch_mask"].bool())
    assert_close(combine, case[f"out/{mode}.combine_weights"], "parity_exact", "combine_weights")
    balance = balance_loss(routing)
    assert_close(balance.reshape(1), case[f"out/{mode}.l_aux"], "parity_exact", "l_aux")
    if padding is None:  # the official histograms count padding that is not routed
        check_statistics(case, routing, f"out/{mode}.metadata.")
    ((combine * case[f"in/{mode}.loss_weight"]).sum() / len(x) + balance).backward()
    for name, gradient in case.group(f"grad/{mode}.").items():
        actual = x.grad if name == "x" else dict(router.named_parameters())[name].grad
        assert actual is not None
        assert_close(actual, gradient, "parity_operator", f"gradient of {name}")


@pytest.mark.parametrize("case", LAYERS, ids=ids(LAYERS))
def test_layer(case: Case) -> None:
    layer = build_layer(case.meta, normed=any("ffn_layernorm" in name for name in case.tensors))
    layer.load_state_dict(case.group("param/"))
    x = case["in/x"].clone().requires_grad_()
    with drawing(case.get("in/uniform0"), None):
        y, report = layer.eval()(x, case.get("in/input_padding_mask"))
    compare(case, {"y": y})
    entropy = report.statistics["entropy"].reshape(1)
    compare(case, {"l_aux": report.balance_loss.reshape(1), "metadata.entropy_gating": entropy}, "parity_exact")
    loss = loss_of(case, y, report.balance_loss)
    assert_close(loss.detach().reshape(1), case["out/loss"], "parity", "loss")
    loss.backward()
    assert x.grad is not None
    check_gradients(case, {**gradients_by_name(layer), "x": x.grad})


@pytest.mark.parametrize("case", ENCODERS, ids=ids(ENCODERS))
def test_encoder(case: Case) -> None:
    model = loaded(case)
    with drawing(case.get("in/uniform0"), None):
        result = model(case["in/src_tokens"], case.get("in/encoder_padding_mask"))
    compare(case, {"encoder_out": result["encoder_out"]}, keep=case["in/loss_keep"])
    check_model(case, model, result["encoder_out"], result["l_aux"])


@pytest.mark.parametrize("case", [*DECODERS, *RETNETS], ids=ids([*DECODERS, *RETNETS]))
def test_decoder(case: Case) -> None:
    model, tokens = loaded(case), case["in/prev_output_tokens"]
    tolerance = "parity_retention" if case in RETNETS else "parity"
    logits, extra = model(tokens)
    compare(case, {"logits": logits}, tolerance)
    check_model(case, model, logits, extra["l_aux"])
    compare(case, {"incremental_logits": incremental_logits(model, tokens)}, tolerance)


CLIPS = [(case, name) for case in cases("sparse_clip") for name in case.group("out/") if name.endswith(".total_norm")]
COUNTED = {"expert": "experts", "normal": "dense", "_is_sharded": "dense"}
"""By the mark on a parameter; those of fairseq's BASE layers count in no norm."""


def max_norm_of(case: Case, run: str, name: str) -> float:
    """The limit that the stored gradients of a run were clipped to: the recorded one whose factor they show."""
    gradient, clipped = case[f"in/grad.{name}"], case[f"out/{run}.clipped.{name}"]
    shown = (clipped.norm() / gradient.norm()).item()
    recorded = {
        float(match[1]): result["factor"][name]
        for key, result in case.meta["extra"]["results"].items()
        if (match := re.fullmatch(rf"world1\.{run}\.max([\d.]+)\.all", key))
    }
    return min(recorded, key=lambda limit: abs(recorded[limit] - shown))


@pytest.mark.parametrize(("case", "norm_name"), CLIPS, ids=[f"{c.name}-{n.split('.')[0]}" for c, n in CLIPS])
def test_sparse_norm(case: Case, norm_name: str) -> None:
    """The official sum of squares; the clipped gradients are not compared, since it clips copies of the experts'."""
    run = norm_name.removesuffix(".total_norm")
    gradients, flags = case.group("in/grad."), case.meta["extra"]["flags"]
    kinds: dict[str, list[str]] = {"dense": [], "experts": []}
    for name in gradients:
        kinds.get(COUNTED.get(flags[name], ""), []).append(name)
    squares = {
        kind: torch.stack([sum_of_squares([gradients[name]], torch.device("cpu")) for name in names]).sum()
        for kind, names in kinds.items()
    }
    experts = int(run.removeprefix("experts"))
    norm = sparse_norm(squares["dense"], squares["experts"], weight=1 / experts)
    torch.testing.assert_close(norm.reshape(1), case[f"out/{norm_name}"], rtol=1e-6, atol=0)
    max_norm = max_norm_of(case, run, kinds["dense"][0])
    parameters = {name: nn.Parameter(torch.empty_like(g)) for name, g in gradients.items()}
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].clone()
    clip_grads_with_norm_(parameters.values(), max_norm, norm)
    expected = {name: case[f"out/{run}.clipped.{name}"] for name in kinds["dense"]}
    expected |= {name: gradients[name] * min(1.0, max_norm / norm.item()) for name in kinds["experts"]}
    for name, clipped in expected.items():
        torch.testing.assert_close(parameters[name].grad, clipped, rtol=1e-5, atol=1e-7, msg=name)
