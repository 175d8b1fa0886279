"""Mixture of experts equals the official one under ``torchscale_compatible``."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from tests.helpers import assert_close, assert_gradient_close
from tests.parity.test_architectures import build, ids
from tests.parity.test_retnet import build as build_retnet
from tests.parity.vectors import Case, cases
from torchscale_fairseq.core.layers.experts import Experts
from torchscale_fairseq.core.layers.moe import MixtureOfExperts, RoutingOptions
from torchscale_fairseq.core.layers.router import LinearRouter, TorchScaleCosineRouter
from torchscale_fairseq.core.ops.routing import Routing, balance_loss, route, statistics
from torchscale_fairseq.core.ops.sparse_clip import sparse_norm, sum_of_squares
from torchscale_fairseq.core.parallel.groups import ExpertSplit

GATES = cases("moe_top*")
LAYERS = cases("moe_layer_*")
ENCODERS = cases("enc_*moe*")
DECODERS = cases("dec_*moe*")
RETNETS = cases("ret_moe")


def options(top_k: int, **given: Any) -> RoutingOptions:
    """The official defaults, changed by what a case was made with."""
    return RoutingOptions(
        top_k=top_k,
        capacity_factor=1.0,
        eval_capacity_token_fraction=given.get("moe_eval_capacity_token_fraction", 0.25),
        policy=given.get("second_expert_policy", "sampling"),
        normalize_before_dropping=given.get("normalize_gate_prob_before_dropping", False),
        prioritized=given.get("batch_prioritized_routing", False),
        use_fp32=given.get("use_fp32", False),
        torchscale_compatible=True,
    )


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
    chosen = options(1 if build["cls"] == "Top1Gate" else 2, **kwargs)
    router = (TorchScaleCosineRouter if kwargs.get("use_xmoe") else LinearRouter)(width, experts)
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


class drawing:
    """The stored random numbers in place of torch's."""

    def __init__(self, uniform: Tensor | None, gumbel: Tensor | None):
        self.uniform, self.gumbel = uniform, gumbel

    def __enter__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        if self.uniform is not None:
            uniform = self.uniform
            self.patch.setattr(torch, "rand_like", lambda like: uniform.view_as(like))
        if self.gumbel is not None:
            gumbel = self.gumbel
            self.patch.setattr(torch.distributions.Gumbel, "sample", lambda _, shape: gumbel.view(shape))

    def __exit__(self, *_: Any) -> None:
        self.patch.undo()


@pytest.mark.parametrize("case", LAYERS, ids=ids(LAYERS))
def test_layer(case: Case) -> None:
    kwargs, build = case.meta["config_kwargs"], case.meta["build"]
    xmoe = kwargs.get("use_xmoe", False)
    experts = Experts(
        ExpertSplit(kwargs["moe_expert_count"]),
        build["embed_dim"],
        build["ffn_dim"],
        gated=False,
        activation_fn="gelu",
        dropout=0.0,
        norm="layernorm",
        eps=1e-5,
    )
    router = (TorchScaleCosineRouter if xmoe else LinearRouter)(build["embed_dim"], kwargs["moe_expert_count"])
    chosen = options(
        1 if kwargs.get("moe_top1_expert") else 2,
        second_expert_policy="random" if xmoe else kwargs["moe_second_expert_policy"],
        normalize_gate_prob_before_dropping=xmoe,
    )
    layer = MixtureOfExperts(router, experts, chosen)
    layer.load_state_dict(case.group("param/"))
    x = case["in/x"].clone().requires_grad_()
    with drawing(case.get("in/uniform0"), None):
        y, report = layer.eval()(x, case.get("in/input_padding_mask"))
    assert torch.allclose(y, case["out/y"], atol=2e-5)
    assert_close(report.balance_loss.reshape(1), case["out/l_aux"], "parity_exact", "l_aux")
    entropy = report.statistics["entropy"].reshape(1)
    assert_close(entropy, case["out/metadata.entropy_gating"], "parity_exact", "entropy")
    loss = (y - case["in/loss_target"]).square()[case["in/loss_keep"]].mean() + 0.1 * report.balance_loss
    assert math.isclose(loss.item(), case["out/loss"].item(), rel_tol=1e-5)
    loss.backward()
    check_gradients(case, layer, {"x": x.grad})


def gradients_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Gradients under the names of the state dict, those of experts apart."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        before, experts, rest = name.rpartition("experts.")
        if experts:
            found |= {f"{before}experts.{index}.{rest}": g for index, g in enumerate(parameter.grad)}
        else:
            found[name] = parameter.grad
    return found


def check_gradients(case: Case, model: nn.Module, more: dict[str, Tensor | None]) -> None:
    found = {**gradients_by_name(model), **more}
    expected = case.group("grad/")
    assert expected
    for name, gradient in expected.items():
        actual = found[name]
        assert actual is not None
        assert_gradient_close(actual, gradient, name)
    for name, norm in case.meta["extra"].get("grad_norms", {}).items():
        if name in found and norm is not None:
            assert math.isclose(found[name].norm().item(), norm, rel_tol=1e-3, abs_tol=1e-6), name  # type: ignore[union-attr]


def check_model(case: Case, model: nn.Module, output: Tensor, l_aux: list[Tensor | None]) -> None:
    auxiliary = torch.stack([loss for loss in l_aux if loss is not None]).sum()
    assert_close(auxiliary.reshape(1), case["out/l_aux"].sum().reshape(1), "parity_exact", "l_aux")
    keep, target = case["in/loss_keep"], case["in/loss_target"]
    loss = (output - target)[keep].square().mean() + 0.1 * auxiliary
    torch.testing.assert_close(loss, case["out/loss"].squeeze(), atol=1e-5, rtol=1e-5)
    loss.backward()
    check_gradients(case, model, {})


@pytest.mark.parametrize("case", ENCODERS, ids=ids(ENCODERS))
def test_encoder(case: Case) -> None:
    model = build(case)
    with drawing(case.get("in/uniform0"), None):
        result = model(case["in/src_tokens"], case["in/encoder_padding_mask"])
    keep = case["in/loss_keep"]
    assert_close(result["encoder_out"][keep], case["out/encoder_out"][keep], "parity", "encoder_out")
    check_model(case, model, result["encoder_out"], result["l_aux"])


@pytest.mark.parametrize("case", [*DECODERS, *RETNETS], ids=ids([*DECODERS, *RETNETS]))
def test_decoder(case: Case) -> None:
    model = build_retnet(case) if case in RETNETS else build(case)
    tokens = case["in/prev_output_tokens"]
    logits, extra = model(tokens)
    assert_close(logits, case["out/logits"], "parity", "logits")
    check_model(case, model, logits, extra["l_aux"])
    state: dict[Any, Any] = {}
    with torch.no_grad():
        steps = [model(tokens[:, : t + 1], incremental_state=state)[0] for t in range(tokens.size(1))]
    assert_close(torch.cat(steps, 1), case["out/incremental_logits"], "parity", "incremental_logits")


CLIPS = cases("sparse_clip")
OF_EXPERTS, DENSE = ("e0", "e1"), ("n0", "n1", "s0")
"""Left out is b0, of fairseq's BASE layers, which count in no norm."""
MAX_NORM = 0.7


@pytest.mark.parametrize("experts", [2, 8, 64])
@pytest.mark.parametrize("case", CLIPS, ids=ids(CLIPS))
def test_sparse_norm(case: Case, experts: int) -> None:
    """The official sum of squares; the clipped gradients are not compared, since it clips copies of the experts'."""
    gradients = case.group("in/grad.")
    squares = {name: sum_of_squares([g], torch.device("cpu")) for name, g in gradients.items()}
    dense = torch.stack([squares[name] for name in DENSE]).sum()
    of_experts = torch.stack([squares[name] for name in OF_EXPERTS]).sum()
    norm = sparse_norm(dense, of_experts, weight=1 / experts)
    torch.testing.assert_close(norm.reshape(1), case[f"out/experts{experts}.total_norm"], rtol=1e-6, atol=0)
    parameters = {name: nn.Parameter(torch.empty_like(g)) for name, g in gradients.items()}
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].clone()
    clip_grads_with_norm_(parameters.values(), MAX_NORM, norm)
    clipped = {name: parameter.grad for name, parameter in parameters.items()}
    for name in DENSE:
        expected = case[f"out/experts{experts}.clipped.{name}"]
        torch.testing.assert_close(clipped[name], expected, rtol=1e-5, atol=1e-7, msg=name)
    for name in OF_EXPERTS:
        torch.testing.assert_close(clipped[name], gradients[name] * (MAX_NORM / norm), rtol=1e-5, atol=1e-7, msg=name)
