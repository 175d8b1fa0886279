"""Normalisation layers by name."""

from torch import nn

NORMS: dict[str, type[nn.LayerNorm] | type[nn.RMSNorm]] = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}
"""LayerNorm (arXiv:1607.06450) and RMSNorm (arXiv:1910.07467)."""


def build_norm(kind: str, width: int, eps: float) -> nn.Module:
    """A normalisation of this kind over the last axis."""
    return NORMS[kind](width, eps=eps)
