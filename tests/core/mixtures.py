"""Layers with experts."""

from typing import Any

from tests.core.models import randomize
from torchscale_fairseq.core.layers.experts import Experts
from torchscale_fairseq.core.layers.moe import MixtureOfExperts, RoutingOptions
from torchscale_fairseq.core.layers.router import LinearRouter
from torchscale_fairseq.core.parallel.groups import ExpertSplit, split_experts

EXPERTS: dict[str, Any] = {"moe_freq": 2, "moe_expert_count": 4}
WIDTH = 6


def options(**changed: Any) -> RoutingOptions:
    defaults: dict[str, Any] = {
        "top_k": 2,
        "capacity_factor": 1.0,
        "eval_capacity_token_fraction": None,
        "policy": "all",
        "normalize_before_dropping": False,
        "prioritized": False,
        "use_fp32": False,
    }
    return RoutingOptions(**{**defaults, **changed})


def mixture(
    experts: int = 4, *, gated: bool = False, norm: str | None = "layernorm", split: bool = False, **changed: Any
) -> Any:
    """A random layer in float64. With split, experts may be split over processes (``splitting_experts``)."""
    held = split_experts(experts) if split else ExpertSplit(experts)
    ffn = Experts(held, WIDTH, 10, gated=gated, activation_fn="gelu", dropout=0.0, norm=norm, eps=1e-5)
    return randomize(MixtureOfExperts(LinearRouter(WIDTH, experts), ffn, options(**changed))).double()
