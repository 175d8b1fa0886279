"""Networks of experts on a GPU, and what a layer of them computes."""

from typing import Any

import torch
from torch import Tensor

from torchscale_fairseq.core.layers.moe import MixtureOfExperts

BOUND = 2e-2
"""Relative RMS error of bfloat16 against float64, through two products, a norm and the sum of the choices."""
NETWORKS: dict[str, dict[str, Any]] = {
    "gated": {"gated": True, "norm": None, "activation_fn": "swish"},
    "gated, RMSNorm": {"gated": True, "norm": "rmsnorm", "activation_fn": "gelu"},
    "SubLN": {"gated": False, "norm": "layernorm", "activation_fn": "gelu"},
    "SiLU, LayerNorm": {"gated": False, "norm": "layernorm", "activation_fn": "swish"},
    "plain": {"gated": False, "norm": None, "activation_fn": "gelu"},
}


def results(module: MixtureOfExperts, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients."""
    x = x.clone().requires_grad_()
    y = module(x)[0]
    direction = torch.linspace(-9, 9, y.numel(), device=y.device, dtype=torch.float64).sin().view_as(y).to(y.dtype)
    (y * direction).sum().backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert x.grad is not None
    return {"output": y.detach(), "input": x.grad, **{k: v for k, v in gradients.items() if v is not None}}
