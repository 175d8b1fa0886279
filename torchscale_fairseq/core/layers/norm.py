"""Normalisation layers by name."""

from torch import nn


def build_norm(kind: str, width: int, eps: float) -> nn.Module:
    """A normalisation over the last axis: layernorm (arXiv:1607.06450) or rmsnorm (arXiv:1910.07467)."""
    return nn.RMSNorm(width, eps=eps) if kind == "rmsnorm" else nn.LayerNorm(width, eps=eps)
