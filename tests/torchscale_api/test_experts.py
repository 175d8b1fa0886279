"""TorchScale's gates, ``MOELayer`` and models with experts against the golden vectors."""

from typing import Any

import pytest
import torch

from tests.helpers import assert_close
from tests.parity.experts import check_model, drawing
from tests.parity.vectors import Case, cases, check_gradients, compare, gradients_by_name, ids, loss_of
from tests.torchscale_api.models import config_of, incremental_logits, loaded, module

GATES = cases("moe_top*")
LAYERS = cases("moe_layer_*")
MODELS = cases("enc_*moe*") + cases("dec_*moe*") + cases("ret_moe")


def gate_of(case: Case) -> Any:
    build = case.meta["build"]
    gate = getattr(module("component.xmoe.routing"), build["cls"])(*build["args"], **build["kwargs"])
    gate.load_state_dict(case.group("param/"), strict=True)
    return gate


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("case", GATES, ids=ids(GATES))
def test_gate(case: Case, mode: str) -> None:
    """Balance loss, weights, places and figures, and gradients."""
    gate, x = gate_of(case).train(mode == "train"), case["in/x"].clone().requires_grad_()
    padding = next((case[name] for name in ("in/mask", "in/input_mask") if case.get(name) is not None), None)
    with drawing(case.get(f"in/{mode}.uniform"), case.get(f"in/{mode}.gumbel")):
        loss, combine, dispatch, figures = gate(x, padding)
    assert torch.equal(dispatch, case[f"out/{mode}.dispatch_mask"].bool())
    assert_close(combine, case[f"out/{mode}.combine_weights"], "parity_exact", "combine_weights")
    assert_close(loss.reshape(1), case[f"out/{mode}.l_aux"], "parity_exact", "l_aux")
    if padding is None:  # the official histograms count padding that is not routed
        check_figures(case, figures, f"out/{mode}.metadata.")
    ((combine * case[f"in/{mode}.loss_weight"]).sum() / len(x) + loss).backward()
    for name, gradient in case.group(f"grad/{mode}.").items():
        actual = x.grad if name == "x" else dict(gate.named_parameters())[name].grad
        assert_close(actual, gradient, "parity_operator", f"gradient of {name}")


def check_figures(case: Case, found: dict[str, Any], prefix: str) -> None:
    expected = case.group(prefix)
    assert expected and expected.keys() <= found.keys()
    for name, value in expected.items():
        assert_close(torch.as_tensor(found[name]).float().reshape(1), value.float(), "parity_exact", name)


@pytest.mark.parametrize("case", LAYERS, ids=ids(LAYERS))
def test_layer(case: Case) -> None:
    """``MOELayer`` over ``make_experts``, with the parameter names of the vectors."""
    build, args = case.meta["build"], config_of(case)
    routing, experts = module("component.xmoe.routing"), module("component.feedforward_network").make_experts
    options = {"use_fp32": args.moe_gating_use_fp32, "use_xmoe": args.use_xmoe}
    if build["gate"] == "Top2Gate":
        options["second_expert_policy"] = args.moe_second_expert_policy
        options["normalize_gate_prob_before_dropping"] = args.moe_normalize_gate_prob_before_dropping
    gate = getattr(routing, build["gate"])(build["embed_dim"], args.moe_expert_count, **options)
    local = experts(args, build["embed_dim"], build["ffn_dim"])
    layer = module("component.xmoe.moe_layer").MOELayer(gate, local, args)
    layer.load_state_dict(case.group("param/"), strict=True)
    x = case["in/x"].clone().requires_grad_()
    with drawing(case.get("in/uniform0"), None):
        y, l_aux = layer.eval()(x, input_padding_mask=case.get("in/input_padding_mask"))
    compare(case, {"y": y})
    compare(case, {"l_aux": l_aux.reshape(1)}, "parity_exact")
    if case.get("in/input_padding_mask") is None:
        check_figures(case, layer.metadata, "out/metadata.")
    loss_of(case, y, l_aux).backward()
    assert x.grad is not None
    check_gradients(case, {**gradients_by_name(layer), "x": x.grad})


@pytest.mark.parametrize("case", MODELS, ids=ids(MODELS))
def test_model(case: Case) -> None:
    """An encoder, a decoder or RetNet whose second layer has experts; steps differ from the whole by capacity."""
    model: Any = loaded(case)
    if "in/src_tokens" in case.tensors:
        with drawing(case.get("in/uniform0"), None):
            found = model(case["in/src_tokens"], case.get("in/encoder_padding_mask"))
        compare(case, {"encoder_out": found["encoder_out"]}, keep=case["in/loss_keep"])
        check_model(case, model, found["encoder_out"], found["l_aux"])
        return
    tolerance, tokens = "parity_retention" if case in cases("ret_moe") else "parity", case["in/prev_output_tokens"]
    logits, extra = model(tokens)
    compare(case, {"logits": logits}, tolerance)
    check_model(case, model, logits, extra["l_aux"])
    with torch.no_grad():
        compare(case, {"incremental_logits": torch.stack(incremental_logits(model, tokens), 1)}, tolerance)
