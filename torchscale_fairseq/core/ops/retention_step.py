"""Retention of one token: a step of decoding.

The state is by far the most that a step reads and writes. The definition goes through it three times, after launches
for rotations and precision; on a GPU one kernel does all of this and goes through it once
(``retention_step_kernels.py``).
"""

from typing import Any

import torch
from torch import Tensor

from .gelu_norm import TRITON
from .retention import RetentionResult, recurrent_retention
from .retention_tables import RetentionTables

if TRITON:
    from . import retention_step_kernels as kernels


def retention_step(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    rotation: RetentionTables | None,
    *,
    state: Tensor | None = None,
    overwrite_state: bool = False,
    **masks: Any,
) -> RetentionResult:
    """``recurrent_retention`` of one token, which defines it.

    Args:
        query, key: (batch, 1, heads, key_dim).
        value: (batch, 1, heads, value_dim).
        rotation: rotates and scales query and key; None where that has been done.
        log_decay, state, overwrite_state, masks: as for ``recurrent_retention``.
    """
    masked = any(mask is not None for mask in masks.values())
    if masked or not _has_kernel((query, key, value), log_decay, rotation, state):
        if rotation is not None:
            query, key = rotation.rotate(query, key)
        return recurrent_retention(query, key, value, log_decay, state=state, overwrite_state=overwrite_state, **masks)
    shape = (query.size(0), *query.shape[2:], value.size(-1))
    overwritten = state if overwrite_state else None
    after = torch.empty(shape, dtype=torch.float32, device=value.device) if overwritten is None else overwritten
    return kernels.retention_step(query, key, value, log_decay, rotation, state, after), after


def _has_kernel(
    inputs: tuple[Tensor, Tensor, Tensor], log_decay: Tensor, rotation: RetentionTables | None, state: Tensor | None
) -> bool:
    """On a GPU, where nothing is differentiated or traced."""
    tables = () if rotation is None else (*rotation.query, *rotation.key)
    exact = [log_decay, *tables] if state is None else [log_decay, *tables, state]
    return (
        TRITON
        and inputs[0].is_cuda
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and all(x.numel() > 0 and x.stride(-1) == 1 for x in inputs)
        and all(x.dtype in (torch.float16, torch.bfloat16, torch.float32) for x in inputs)
        and all(x.dtype == torch.float32 and x.is_contiguous() for x in exact)
        and (rotation is None or rotation.rows is None)
    )
