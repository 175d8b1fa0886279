"""Mixture of experts: routing, dispatch, experts, combine, and the models that have them."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.core.mixtures import EXPERTS, WIDTH, mixture, options
from tests.core.models import decoder, encoder, encoder_decoder, randomize, tokens
from tests.helpers import assert_close
from torchscale_fairseq import DecoderConfig, EncoderConfig
from torchscale_fairseq.core.architectures import factory
from torchscale_fairseq.core.architectures.decoder import Decoder
from torchscale_fairseq.core.architectures.encoder import Encoder
from torchscale_fairseq.core.config import ExpertOptions
from torchscale_fairseq.core.layers.feed_forward import FeedForwardNetwork, GatedLinearUnit
from torchscale_fairseq.core.layers.moe import MixtureOfExperts
from torchscale_fairseq.core.layers.norm import build_norm
from torchscale_fairseq.core.layers.router import CosineRouter
from torchscale_fairseq.core.ops.expert_rows import Places
from torchscale_fairseq.core.ops.routing import balance_loss, capacity_of, route, statistics, z_loss
from torchscale_fairseq.core.ops.segments import Segments
from torchscale_fairseq.core.ops.sparse_clip import sparse_norm, sum_of_squares
from torchscale_fairseq.core.parallel.groups import ExpertSplit, split_experts


def one_by_one(layer: MixtureOfExperts) -> list[nn.Module]:
    """The layer's experts as dense networks."""
    experts, state = layer.experts, layer.experts.state_dict()
    networks: list[nn.Module] = []
    for index in range(experts.split.count):
        norm = None if experts.ffn_layernorm is None else build_norm("layernorm", 10, 1e-5)
        kind = GatedLinearUnit if experts.gate is not None else FeedForwardNetwork
        network = kind(WIDTH, 10, activation_fn="gelu", inner_norm=norm).double()
        network.load_state_dict({k[2:]: v for k, v in state.items() if k.startswith(f"{index}.")})
        networks.append(network)
    return networks


def by_definition(layer: MixtureOfExperts, x: Tensor, padding: Tensor | None = None) -> Tensor:
    """A loop over tokens, choices and experts, in the order in which tokens queue."""
    flat = x.reshape(-1, WIDTH)
    hidden = torch.zeros(len(flat), dtype=torch.bool) if padding is None else padding.reshape(-1)
    real = [t for t in range(len(flat)) if not hidden[t]]
    probability = layer.gate(flat)[0].softmax(-1)
    networks, k = one_by_one(layer), layer.options.top_k
    count = len(networks)
    capacity = layer.options.capacity(len(real), count, training=layer.training)
    chosen = {t: probability[t].argsort(descending=True, stable=True)[:k].tolist() for t in real}
    queue = real
    if layer.options.prioritized:
        queue = sorted(real, key=lambda t: -probability[t].max().item())
    used, kept = [0] * count, {t: [False] * k for t in real}
    for choice in range(k):
        for t in queue:
            expert = chosen[t][choice]
            kept[t][choice] = capacity is None or used[expert] < capacity
            used[expert] += 1
    output = 0 * flat
    for t in real:
        gates = torch.stack([probability[t][e] for e in chosen[t]])
        keep = torch.tensor(kept[t])
        if k > 1:
            over = gates if layer.options.normalize_before_dropping else gates * keep
            gates = gates / over.sum().clamp(min=torch.finfo(gates.dtype).eps)
        for gate, expert, stays in zip(gates, chosen[t], kept[t], strict=True):
            if stays:
                output[t] = output[t] + gate * networks[expert](flat[t])
    return output.view_as(x)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 9),
    experts=st.integers(1, 5),
    k=st.integers(1, 3),
    factor=st.sampled_from([0.3, 1.0, 2.0, None]),
    before=st.booleans(),
    prioritized=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_its_definition(
    batch: int, length: int, experts: int, k: int, factor: float | None, before: bool, prioritized: bool, seed: int
) -> None:
    layer = mixture(
        experts,
        top_k=min(k, experts),
        capacity_factor=factor,
        normalize_before_dropping=before,
        prioritized=prioritized,
    ).train()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    padding = torch.rand(batch, length, generator=generator) < 0.3
    actual, _ = layer(x, padding)
    expected = by_definition(layer, x, padding)
    assert_close(actual, expected, "float64", "output")
    assert actual[padding].eq(0).all()
    weight = torch.randn(actual.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad((actual * weight).sum(), [x, layer.gate.wg.weight], materialize_grads=True)
    wanted = torch.autograd.grad((expected * weight).sum(), [x, layer.gate.wg.weight], materialize_grads=True)
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b, "float64", "gradient")


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40),
    experts=st.integers(1, 8),
    k=st.integers(1, 4),
    capacity=st.one_of(st.none(), st.integers(1, 12)),
    policy=st.sampled_from(["all", "sampling", "random"]),
    padded=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_routing_keeps_its_promises(
    tokens: int, experts: int, k: int, capacity: int | None, policy: str, padded: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    k = min(k, experts)
    padding = torch.rand(tokens) < 0.4 if padded else None
    routing = route(torch.randn(tokens, experts), top_k=k, capacity=capacity, policy=policy, padding=padding)
    assert all(len(set(row.tolist())) == k for row in routing.expert), "an expert is chosen once per token"
    pairs = list(zip(routing.token.tolist(), routing.expert.T.reshape(-1)[routing.order].tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) == int(routing.kept.sum()), "each kept choice comes once"
    assert torch.bincount(torch.tensor([e for _, e in pairs], dtype=torch.long), minlength=experts).equal(routing.load)
    assert [e for _, e in pairs] == sorted(e for _, e in pairs), "sorted by expert"
    places = Places.of(routing)
    assert places.choice[: len(pairs)].equal((routing.token * k + routing.order // tokens).int()), "rows are in order"
    assert (places.choice[len(pairs) :] == -1).all() and len(places.choice) == routing.most >= len(pairs)
    numbers = torch.arange(tokens * k, dtype=torch.int32).view(tokens, k)
    assert places.choice[places.row[routing.kept]].equal(numbers[routing.kept]), "a choice stands where it should"
    assert (places.row[~routing.kept] == -1).all()
    assert routing.weight.equal(routing.gate[routing.kept].sum() * 0 + routing.gate.T.reshape(-1)[routing.order])
    if capacity is not None:
        assert routing.load.max() <= capacity
    else:
        assert routing.kept.equal(routing.candidate), "dropless loses nothing"
    if policy != "random" and padding is None:
        assert routing.candidate.all()
    if padding is not None:
        assert not routing.candidate[padding].any()
    assert (routing.gate[~routing.kept] == 0).all()


def test_permuting_tokens_permutes_outputs() -> None:
    layer = mixture(5, capacity_factor=None).train()
    x = torch.randn(1, 11, WIDTH, dtype=torch.float64)
    order = torch.randperm(11)
    assert_close(layer(x[:, order])[0], layer(x)[0][:, order], "float64")


def test_padding_changes_nothing_for_others() -> None:
    layer = mixture(4, capacity_factor=0.5).train()
    x = torch.randn(1, 9, WIDTH, dtype=torch.float64)
    padded = torch.cat((x, torch.randn(1, 4, WIDTH, dtype=torch.float64)), 1)
    mask = torch.arange(13)[None] >= 9
    output, report = layer(padded, mask)
    expected, alone = layer(x)
    assert_close(output[:, :9], expected, "float64")
    assert_close(report.balance_loss, alone.balance_loss, "float64")


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("norm", [None, "layernorm"])
def test_gradients_of_experts(gated: bool, norm: str | None) -> None:
    layer = mixture(3, gated=gated, norm=norm, capacity_factor=None)
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    networks = one_by_one(layer)
    (layer(x)[0] ** 2).sum().backward()
    routing = route(layer.gate(x.reshape(-1, WIDTH))[0], top_k=2)
    flat = x.reshape(-1, WIDTH)
    rows = []
    for t in range(len(flat)):
        rows.append(sum(routing.gate[t, c].detach() * networks[int(routing.expert[t, c])](flat[t]) for c in range(2)))
    (torch.stack(rows) ** 2).sum().backward()
    for name, parameter in layer.experts.named_parameters():
        expected = torch.stack([dict(network.named_parameters())[name].grad for network in networks])
        assert_close(parameter.grad, expected, "float64", name)


def test_an_expert_without_tokens_has_zero_gradient() -> None:
    layer = mixture(4, top_k=1)
    with torch.no_grad():
        layer.gate.wg.weight.zero_()  # all tokens go to the first
    layer(torch.randn(1, 3, WIDTH, dtype=torch.float64))[0].sum().backward()
    gradient = layer.experts.fc1.weight.grad
    assert gradient[0].abs().sum() > 0 and gradient[1:].eq(0).all()


def test_capacity() -> None:
    assert capacity_of(24, 4, top_k=1, factor=1.0) == 6
    assert capacity_of(25, 4, top_k=2, factor=1.0) == 14
    assert capacity_of(25, 4, top_k=2, factor=1.25) == 17
    training, evaluation = {"training": True}, {"training": False}
    assert options().capacity(24, 4, **training) == 12
    assert options().capacity(24, 4, **evaluation) is None
    assert options(eval_capacity_token_fraction=0.25).capacity(25, 4, **evaluation) == 7
    assert options(eval_capacity_token_fraction=-1.0).capacity(24, 4, **evaluation) == 12
    assert options(capacity_factor=None).capacity(24, 4, **training) is None


def test_balance_loss_by_hand() -> None:
    probability = torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8], [0.9, 0.1]])
    routing = route(probability.log(), top_k=1)
    # three of four first choices go to expert 0, whose mean probability is 0.6
    assert math.isclose(balance_loss(routing).item(), 2 * (0.75 * 0.6 + 0.25 * 0.4), rel_tol=1e-6)
    assert math.isclose(z_loss(probability.log()).item(), 0.0, abs_tol=1e-6)
    assert math.isclose(z_loss(torch.zeros(3, 4)).item(), math.log(4) ** 2, rel_tol=1e-6)


def test_statistics_by_hand() -> None:
    probability = torch.tensor([[0.7, 0.2, 0.1]] * 3 + [[0.1, 0.8, 0.1]])
    found = statistics(route(probability.log(), top_k=1, capacity=2))
    assert found["dropped"] == 25.0  # the third token finds expert 0 full
    assert (found["load_most"], found["load_least"], found["unused"]) == (200.0, 0.0, 1)
    entropy = -(0.75 * (0.7 * math.log(0.7) + 0.2 * math.log(0.2)) + 0.75 * 0.1 * math.log(0.1))
    entropy -= 0.25 * (0.8 * math.log(0.8) + 0.2 * math.log(0.1))
    assert math.isclose(found["entropy"].item(), entropy, rel_tol=1e-5)


def test_random_policy_keeps_the_second_expert_by_its_gate() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.7, 0.3]).log().expand(20_000, 2)
    kept = route(logits, top_k=2, policy="random").candidate
    assert kept[:, 0].all()
    assert abs(kept[:, 1].float().mean().item() - 2 * 0.3) < 0.02


def test_sampling_policy_draws_by_probability() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    second = route(logits, top_k=2, policy="sampling").expert[:, 1]
    assert abs(second.eq(1).float().mean().item() - 0.6) < 0.02


def test_chance_is_for_training() -> None:
    assert options(policy="random").policy_for(training=True) == "random"
    assert options(policy="random").policy_for(training=False) == "all"


def test_cosine_router_by_hand() -> None:
    router = randomize(CosineRouter(WIDTH, 5, 4)).double()
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    projected = x @ router.wg_reduction.weight.T
    cosine = F.cosine_similarity(projected[:, None], router.wg[None], dim=-1)
    with torch.no_grad():
        router.temperature.fill_(0.3)
    scores, balance = router(x)
    assert_close(scores, cosine / 0.3, "float64")
    assert_close(balance, cosine / 0.07, "float64")
    with torch.no_grad():
        router.temperature.fill_(1e-5)
    assert_close(router(x)[0], cosine / 0.01, "float64")
    before = copy.deepcopy(router.state_dict())
    router(x)
    assert all(value.equal(before[name]) for name, value in router.state_dict().items())


def test_sparse_norm() -> None:
    dense, experts = [torch.full((3,), 2.0)], [torch.full((2, 2), 3.0), torch.full((1,), 1.0)]
    device = torch.device("cpu")
    norm = sparse_norm(sum_of_squares(dense, device), sum_of_squares(experts, device), weight=1 / 4)
    assert math.isclose(norm.item(), math.sqrt(12 + 37 / 4), rel_tol=1e-6)
    assert sum_of_squares([], device) == 0
    assert sum_of_squares([torch.full((4,), 300.0, dtype=torch.float16)], device) == 4 * 300**2, "beyond float16"
    wide = [torch.full((1,), 3.0, dtype=torch.float64), torch.full((1,), 1e-6, dtype=torch.float32)]
    assert sum_of_squares(wide, device).dtype == torch.float64


@pytest.mark.parametrize("variant", [{}, {"use_xmoe": True}, {"moe_top1_expert": True}, {"moe_top_k": 3}], ids=str)
@pytest.mark.parametrize("build", [encoder, decoder], ids=["encoder", "decoder"])
def test_models_report_their_routing(build: Any, variant: dict[str, Any]) -> None:
    model = build(**EXPERTS, **variant)
    output = model(tokens(2, 7))
    extra = output if isinstance(output, dict) else output[1]
    assert [loss is None for loss in extra["l_aux"]] == [True, False, True]
    assert extra["routing"][1].balance_loss is extra["l_aux"][1]


def test_encoder_decoder_reports_both_sides() -> None:
    model = encoder_decoder(**EXPERTS, decoder_moe_freq=3)
    extra = model(tokens(2, 7), tokens(2, 5))[1]
    assert [loss is not None for loss in extra["l_aux"]] == [False, True, False, False, False, True]


@pytest.mark.parametrize("variant", [{"use_xmoe": True}, {"moe_dropless": True, "gated_ffn": True}], ids=str)
def test_decoding_step_by_step_equals_the_full_forward(variant: dict[str, Any]) -> None:
    model = decoder(**EXPERTS, **variant).double()
    text = tokens(3, 9)
    padding = torch.zeros(3, 9, dtype=torch.bool)
    padding[0, :3] = True
    full = model(text, padding)[0]
    state: dict[Any, Any] = {}
    steps = [model(text[:, : t + 1], padding[:, : t + 1], incremental_state=state)[0] for t in range(9)]
    assert_close(torch.cat(steps, 1)[~padding], full[~padding], "float64")


def test_evaluation_does_not_depend_on_the_batch() -> None:
    model = encoder(**EXPERTS)
    text = tokens(4, 8)
    assert_close(model(text)["encoder_out"][:1], model(text[:1])["encoder_out"], "float32")


def test_recomputed_layers_give_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        model = decoder(**EXPERTS, checkpoint_activations=recompute).train()
        logits, extra = model(tokens(2, 6))
        (logits.sum() + extra["l_aux"][1]).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, "float32")


@pytest.mark.parametrize("compatible", [False, True])
@pytest.mark.parametrize("xmoe", [False, True])
def test_a_forward_changes_nothing_in_place(xmoe: bool, compatible: bool) -> None:
    """Two forward passes before one backward."""
    model = encoder(**EXPERTS, use_xmoe=xmoe, torchscale_compatible=compatible).train()
    before = copy.deepcopy(model.state_dict())
    outputs = [model(tokens(2, 6, seed))["encoder_out"] for seed in (1, 2)]
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    torch.stack(outputs).square().sum().backward()


CHANGED: dict[str, Any] = {
    "moe_freq": 3,
    "encoder_moe_freq": 1,
    "moe_expert_count": 5,
    "moe_expert_ffn_dim": 20,
    "moe_top_k": 1,
    "moe_top1_expert": True,
    "moe_capacity_factor": 0.5,
    "moe_dropless": True,
    "moe_eval_capacity_token_fraction": 0.1,
    "moe_second_expert_policy": "random",
    "moe_normalize_gate_prob_before_dropping": True,
    "moe_batch_prioritized_routing": True,
    "moe_gating_use_fp32": True,
    "use_xmoe": True,
    "moe_routing_dim": 3,
    "moe_expert_dropout": 0.5,
    "moe_freeze_routing": True,
    "moe_normalize_expert_grad": "sqrt_world_size",
    "moe_clip": "plain",
}


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(ExpertOptions)] + ["encoder_moe_freq"])
def test_each_option_changes_something(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = EXPERTS if name.endswith("moe_freq") else {"moe_freq": 1, "moe_expert_count": 8}
    given = {**given, "use_xmoe": name == "moe_routing_dim"}
    assert observed(given, monkeypatch) != observed({**given, name: CHANGED[name]}, monkeypatch)


def test_without_a_change_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert observed(EXPERTS, monkeypatch) == observed(EXPERTS, monkeypatch)


def mixture_of(model: Decoder | Encoder) -> Any:
    """The first layer with experts."""
    return next(layer.moe_layer for layer in model.layers if layer.moe_layer is not None)


def observed(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What can be seen of a model: parameters, outputs in training and evaluation and in half the precision, and how
    gradients of experts are treated, in two processes too."""
    model, text = encoder(**given), tokens(3, 9)
    seen: list[Any] = [{name: (p.shape, p.requires_grad) for name, p in model.named_parameters()}]
    for one, training in ((model, True), (model, False), (copy.deepcopy(model).bfloat16(), False)):
        torch.manual_seed(0)
        seen.append(one.train(training)(text)["encoder_out"].tolist())
    layer = mixture_of(model)
    seen.append(layer.experts.fc1.weight.expert.norm_weight)
    with monkeypatch.context() as patch:
        patch.setattr(factory, "split_experts", lambda count: ExpertSplit(count, size=2))
        shared = mixture_of(encoder(**given)).experts
    segments = Segments(torch.ones(shared.split.local, dtype=torch.long))
    segments.gradient_divisor = shared.gradient_divisor
    shared(torch.ones(shared.split.local, 24), segments).sum().backward()
    return [*seen, shared.fc2.bias.grad.tolist()]


def test_parameter_names_are_those_of_torchscale() -> None:
    names = encoder(**EXPERTS, use_xmoe=True).state_dict()
    expected = {
        f"layers.1.moe_layer.experts.{e}.fc{i}.{p}" for e in range(4) for i in (1, 2) for p in ("weight", "bias")
    }
    expected |= {f"layers.1.moe_layer.gate.{name}" for name in ("wg", "wg_reduction.weight")}
    assert expected <= set(names)
    assert not [name for name in names if "layers.1.ffn" in name or "experts.fc" in name]


def test_state_dict_round_trip_and_copy() -> None:
    model = decoder(**EXPERTS)
    state = model.state_dict()
    other = Decoder(model.config)
    other.load_state_dict(state)
    copied = copy.deepcopy(model)
    for one in (other.eval(), copied):
        assert_close(one(tokens(2, 5))[0], model(tokens(2, 5))[0], "float32")


def test_a_checkpoint_with_another_number_of_experts_is_refused() -> None:
    state = decoder(**EXPERTS).state_dict()
    with pytest.raises(
        RuntimeError, match=r"has experts 0-3 in the checkpoint, but 0-7 here; set moe_expert_count to 4"
    ):
        decoder(**{**EXPERTS, "moe_expert_count": 8}).load_state_dict(state)


def test_experts_start_differently_and_by_the_scheme() -> None:
    config = DecoderConfig(vocab_size=40, decoder_layers=2, decoder_embed_dim=64, decoder_attention_heads=4, **EXPERTS)
    torch.manual_seed(0)
    experts = mixture_of(Decoder(config)).experts
    weight = experts.fc1.weight
    assert not weight[0].equal(weight[1])
    gain = math.sqrt(math.log(2 * 2))
    expected = gain * math.sqrt(2 / (64 + 3072))
    assert all(math.isclose(one.std().item(), expected, rel_tol=0.03) for one in weight)
    assert experts.fc1.bias.eq(0).all()


def test_frozen_routing_and_expert_dropout() -> None:
    model = encoder(**EXPERTS, moe_freeze_routing=True, moe_expert_dropout=0.5, activation_dropout=0.1)
    layer = mixture_of(model)
    assert not any(p.requires_grad for p in layer.gate.parameters())
    assert layer.experts.dropout.p == 0.5
    assert model.get_submodule("layers.0.ffn.activation_dropout").p == 0.1


def test_routing_in_float32_under_lower_precision() -> None:
    for use_fp32, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        layer = mixture_of(encoder(**EXPERTS, moe_gating_use_fp32=use_fp32).bfloat16())
        routing, _ = layer._route(torch.randn(5, 24, dtype=torch.bfloat16), None)
        assert routing.probability.dtype == dtype


def test_no_process_group_means_all_experts() -> None:
    assert split_experts(6) == ExpertSplit(6)
    assert ExpertSplit(8, rank=1, size=4).first == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"moe_freq": 2}, r"moe_expert_count \(0\) must be at least 1"),
        ({"moe_expert_count": 4}, r"moe_expert_count=4 has no use without experts"),
        ({"use_xmoe": True}, r"use_xmoe=True has no use without experts"),
        ({"moe_freq": 20, "moe_expert_count": 4}, r"moe_freq \(20\) is above encoder_layers \(12\)"),
        ({**EXPERTS, "moe_top_k": 5}, r"moe_top_k \(5\) must be between 1 and moe_expert_count \(4\)"),
        ({**EXPERTS, "moe_top_k": 2, "moe_top1_expert": True}, r"moe_top1_expert contradicts moe_top_k \(2\)"),
        ({**EXPERTS, "moe_capacity_factor": 0.0}, r"moe_capacity_factor \(0.0\) must be above 0"),
        ({**EXPERTS, "moe_eval_capacity_token_fraction": 1.5}, r"\(1.5\) must be above 0 and at most 1"),
        ({**EXPERTS, "moe_second_expert_policy": "best"}, r"moe_second_expert_policy \('best'\) must be one of"),
        ({**EXPERTS, "moe_routing_dim": 4}, "moe_routing_dim=4 is for use_xmoe; add use_xmoe=True"),
        ({**EXPERTS, "multiway": True}, "multiway and moe_freq cannot both be on"),
    ],
)
def test_contradicting_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig(vocab_size=40, **wrong)


def test_encoder_side_alone_may_have_experts() -> None:
    model = Encoder(EncoderConfig(vocab_size=40, encoder_moe_freq=3, moe_expert_count=2, encoder_layers=3))
    assert [layer.moe_layer is not None for layer in model.layers] == [False, False, True]
