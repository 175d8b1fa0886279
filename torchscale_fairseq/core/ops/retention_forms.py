"""The one function through which retention is computed, and the choice of its form."""

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from .retention import RetentionResult, chunkwise_retention, parallel_retention, recurrent_retention

CHUNKWISE_ABOVE = 384
"""Tokens above which the chunkwise form, at its default chunk size, is faster than the parallel one
(docs/performance.md)."""


def retention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    *,
    chunkwise: bool = False,
    chunk_size: int = 128,
    backend: str = "torch",
    **options: Any,
) -> RetentionResult:
    """Retention in the form that suits the length; all forms compute the same.

    Args:
        query, key, value, log_decay, options: as for every form (``ops.retention``).
        chunkwise: the chunkwise form, whatever the length, except for single tokens.
        chunk_size: tokens per chunk of that form.
        backend: torch, or fla (the chunkwise kernel of flash-linear-attention, for more than single tokens).

    Returns:
        Output and state, as every form.

    Raises:
        ValueError: the backend cannot serve the request.
    """
    if query.size(1) == 1:
        return recurrent_retention(query, key, value, log_decay, **options)
    if backend == "fla":
        refusal = _fla_refusal(query, **options)
        if refusal:
            raise ValueError(f"retention_backend=fla {refusal}")
        return fla_retention(query, key, value, log_decay, state=options.get("state"))
    if chunkwise or query.size(1) > CHUNKWISE_ABOVE:
        return chunkwise_retention(query, key, value, log_decay, chunk_size=chunk_size, **options)
    return parallel_retention(query, key, value, log_decay, **options)


def fla_retention(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, *, state: Tensor | None = None
) -> RetentionResult:
    """The same by flash-linear-attention, through its kernel that takes the decays as an argument.

    Queries and keys are rounded to the dtype of the values; the kernel accumulates in float32.
    """
    from fla.ops.simple_gla import chunk_simple_gla

    output, final = chunk_simple_gla(
        query.to(value.dtype),
        key.to(value.dtype),
        value,
        g_gamma=log_decay.to(torch.float32),
        scale=1.0,
        initial_state=None if state is None else state.to(torch.float32),
        output_final_state=True,
    )
    return output.to(torch.float32), final.to(torch.float32)


@functools.cache
def _has_fla() -> bool:
    return importlib.util.find_spec("fla") is not None


def _fla_refusal(
    query: Tensor,
    padding_mask: Tensor | None = None,
    document_starts: Tensor | None = None,
    state: Tensor | None = None,
) -> str | None:
    if not _has_fla():
        return "needs the package flash-linear-attention (pip install flash-linear-attention); use torch."
    if query.device.type != "cuda":
        return f"needs a GPU, not {query.device.type}; use torch."
    if padding_mask is not None or document_starts is not None:
        return "knows no padding and no packed documents; use torch."
    return None
