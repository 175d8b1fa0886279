"""Plain requests to operations with several backends, by which to learn what a backend serves before it is needed."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .attention import AttentionMask, AttentionRequest
from .backend import Backend
from .backends import ATTENTION
from .retention_forms import RETENTION, RetentionRequest


class Probe(NamedTuple):
    """An operation's backends, and a request without padding, as training on packed text makes it."""

    backends: Sequence[Backend[Any, Any]]
    request: Callable[[torch.device, torch.dtype], Any]
    """A request on a device, in a dtype."""


def _attention(device: torch.device, dtype: torch.dtype) -> AttentionRequest:
    x = _tokens(device, dtype)
    return AttentionRequest(x, x, x, AttentionMask(causal=True), scale=1.0)


def _retention(device: torch.device, dtype: torch.dtype) -> RetentionRequest:
    x = _tokens(device, dtype)
    return RetentionRequest(x, x, x, torch.full((2,), -0.1, device=device), False, 128, {})


def _tokens(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(batch, seq, heads, head_dim)."""
    return torch.zeros(1, 16, 2, 64, device=device, dtype=dtype)


PROBES = {"attention_backend": Probe(ATTENTION, _attention), "retention_backend": Probe(RETENTION, _retention)}
"""By the option that names a backend."""
