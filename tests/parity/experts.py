"""Mixtures of experts as the cases describe them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import assert_close
from tests.parity.vectors import Case, check_loss_and_gradients
from torchscale_fairseq.core.layers.experts import Experts
from torchscale_fairseq.core.layers.moe import MixtureOfExperts, RoutingOptions
from torchscale_fairseq.core.layers.router import LinearRouter, TorchScaleCosineRouter
from torchscale_fairseq.core.parallel.groups import ExpertSplit


def routing_options(gate: str, given: dict[str, Any]) -> RoutingOptions:
    """The defaults of the official gate's constructor, changed by the arguments it was given."""
    return RoutingOptions(
        top_k=1 if gate == "Top1Gate" else 2,
        capacity_factor=given.get("capacity_factor", 1.0),
        eval_capacity_token_fraction=given.get("moe_eval_capacity_token_fraction", 0.25),
        policy=given.get("second_expert_policy", "sampling"),
        normalize_before_dropping=given.get("normalize_gate_prob_before_dropping", False),
        prioritized=given.get("batch_prioritized_routing", False),
        use_fp32=given.get("use_fp32", False),
        torchscale_compatible=True,
    )


def gate_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments that official layers give to their gates, from the attributes of their config."""
    names = ("second_expert_policy", "normalize_gate_prob_before_dropping")
    given = {name: config[f"moe_{name}"] for name in names}
    given["moe_eval_capacity_token_fraction"] = config["moe_eval_capacity_token_fraction"]
    return {**given, "use_fp32": config["moe_gating_use_fp32"], "use_xmoe": config["use_xmoe"]}


def build_router(width: int, experts: int, *, xmoe: bool) -> nn.Module:
    return (TorchScaleCosineRouter if xmoe else LinearRouter)(width, experts)


def build_layer(meta: dict[str, Any], *, normed: bool) -> MixtureOfExperts:
    """The layer that a case's metadata describe, as initialised.

    Args:
        normed: SubLN: whether the experts have an inner norm.
    """
    config, build = meta["config"], meta["build"]
    experts = Experts(
        ExpertSplit(config["moe_expert_count"]),
        build["embed_dim"],
        build["ffn_dim"],
        gated=False,
        activation_fn=config["activation_fn"],
        dropout=0.0,
        norm="layernorm" if normed else None,
        eps=config["layernorm_eps"],
    )
    router = build_router(build["embed_dim"], config["moe_expert_count"], xmoe=config["use_xmoe"])
    return MixtureOfExperts(router, experts, routing_options(build["gate"], gate_arguments(config)))


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


def check_model(case: Case, model: nn.Module, output: Tensor, l_aux: list[Tensor | None]) -> None:
    auxiliary = torch.stack([loss for loss in l_aux if loss is not None]).sum()
    assert_close(auxiliary.detach(), case["out/l_aux"].sum(), "parity_exact", "l_aux")
    check_loss_and_gradients(case, model, output, auxiliary)
