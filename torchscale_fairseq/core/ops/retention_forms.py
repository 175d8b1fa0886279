"""The one function through which retention is computed, and the choice of its form."""

from typing import Any

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
    **options: Any,
) -> RetentionResult:
    """Retention in the form that suits the length; all forms compute the same.

    Args:
        query, key, value, log_decay, options: as for every form (``ops.retention``).
        chunkwise: the chunkwise form, whatever the length, except for single tokens.
        chunk_size: tokens per chunk of that form.

    Returns:
        Output and state, as every form.
    """
    if query.size(1) == 1:
        return recurrent_retention(query, key, value, log_decay, **options)
    if chunkwise or query.size(1) > CHUNKWISE_ABOVE:
        return chunkwise_retention(query, key, value, log_decay, chunk_size=chunk_size, **options)
    return parallel_retention(query, key, value, log_decay, **options)
