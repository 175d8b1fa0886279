"""The kernels of flash-linear-attention for packed sequences, started without waiting for the device.

fla's own function asks the device for the number of chunks three times in each layer, so that the host, which has to
start every kernel, falls behind. Here the host brings that number along; kernels and arguments are the same.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .retention_packing import CHUNK, Packing, Results

_OF_STATES = (
    "k v h g g_gamma gk gv h0 ht cu_seqlens split_offsets T H K V BT BS BK BV USE_G USE_G_GAMMA USE_GK USE_GV "
    "USE_INITIAL_STATE STORE_FINAL_STATE IS_VARLEN STATE_V_FIRST"
)
_OF_GRADIENTS = (
    "q g g_gamma gk gv do dh dht dh0 cu_seqlens split_offsets scale T HQ H K V BT BS BK BV NG USE_G USE_G_GAMMA USE_GK "
    "USE_GV STORE_INITIAL_STATE_GRADIENT USE_FINAL_STATE_GRADIENT IS_VARLEN STATE_V_FIRST"
)
_FIXED: dict[str, Any] = {
    "g": None,
    "gk": None,
    "gv": None,
    "BT": CHUNK,
    "BS": CHUNK,
    "USE_G": False,
    "USE_G_GAMMA": True,
    "USE_GK": False,
    "USE_GV": False,
    "STATE_V_FIRST": False,
}
"""Arguments of both kernels that never change: one decay per head, and the state before every chunk is stored."""


@functools.cache
def are_known() -> bool:
    """Whether the installed kernels of the states take the arguments that they get here (fla-core 0.6); they are
    internal to fla. The kernels' decays are powers of two then."""
    try:
        from fla.ops.common.chunk_h import chunk_bwd_kernel_dh, chunk_fwd_kernel_h
        from fla.ops.simple_gla.chunk import RCP_LN2  # noqa: F401
    except ImportError:
        return False
    kernels = (chunk_fwd_kernel_h, _OF_STATES), (chunk_bwd_kernel_dh, _OF_GRADIENTS)
    return all(list(getattr(kernel, "arg_names", ())) == names.split() for kernel, names in kernels)


def sequences_by_fla(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    *,
    state: Tensor | None,
    packing: Packing,
    need_state: bool,
) -> Results:
    """Retention of packed sequences.

    Args:
        query, key: (1, tokens, heads, key_dim), of one dtype.
        value: (1, tokens, heads, value_dim), of that dtype.
        log_decay: (heads,), float32.
        state: (sequences, heads, key_dim, value_dim), float32, before the sequences; None for zeros.
        packing: where the sequences lie.
        need_state: whether states after the sequences are returned.

    Returns:
        Output, shaped like value and of its dtype, and states, float32, or None.
    """
    tensors = [x.contiguous() for x in (query, key, value)]
    before = None if state is None else state.contiguous()
    results: Results = _Sequences.apply(*tensors, log_decay, before, packing, need_state)  # type: ignore[no-untyped-call]
    return results


class _Sequences(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        log_decay: Tensor,
        state: Tensor | None,
        packing: Packing,
        need_state: bool,
    ) -> Results:
        from fla.ops.common.chunk_o import chunk_fwd_o
        from fla.ops.utils.constant import RCP_LN2

        decay = log_decay * RCP_LN2
        ctx.packing = packing
        ctx.save_for_backward(query, key, value, decay, state)
        with torch.cuda.device_of(query):
            before, after = _states(key, value, decay, state, packing, key.dtype, need_state=need_state)
            output = chunk_fwd_o(q=query, k=key, v=value, h=before, **_within_chunks(decay, packing))
        return output, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_states: Tensor | None) -> tuple[Tensor | None, ...]:
        from fla.ops.common.chunk_o import chunk_bwd_dqkwg, chunk_bwd_dv

        query, key, value, decay, state = ctx.saved_tensors
        gradient, of_states = gradient.contiguous(), None if of_states is None else of_states.contiguous()
        options = _within_chunks(decay, ctx.packing)
        with torch.cuda.device_of(query):
            before, _ = _states(key, value, decay, state, ctx.packing, torch.float32, need_state=False)
            after, of_state = _state_gradients(query, gradient, decay, state, of_states, ctx.packing)
            of_query, of_key, *_ = chunk_bwd_dqkwg(q=query, k=key, v=value, do=gradient, h=before, dh=after, **options)
            of_value = chunk_bwd_dv(q=query, k=key, do=gradient, dh=after, **options)
        return of_query, of_key, of_value, None, of_state, None, None


def _within_chunks(decay: Tensor, packing: Packing) -> dict[str, Any]:
    """Arguments of fla's functions for the tokens of a chunk, besides tensors of tokens and states."""
    sequences = {"cu_seqlens": packing.offsets, "chunk_indices": packing.chunks.places}
    return {"g_gamma": decay, "scale": 1.0, "chunk_size": CHUNK, **sequences}


def _states(
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    state: Tensor | None,
    packing: Packing,
    dtype: torch.dtype,
    *,
    need_state: bool,
) -> Results:
    """States before each chunk, (1, chunks, heads, key_dim, value_dim), and after each sequence, if needed."""
    from fla.ops.common.chunk_h import chunk_fwd_kernel_h

    (_, tokens, heads, key_dim), value_dim = key.shape, value.size(-1)
    before = key.new_empty(1, len(packing.chunks.places), heads, key_dim, value_dim, dtype=dtype)
    after = None
    if need_state:
        after = key.new_empty(len(packing.lengths), heads, key_dim, value_dim, dtype=torch.float32)
    chunk_fwd_kernel_h[_grid(packing, heads, key_dim, value_dim)](
        k=key,
        v=value,
        h=before,
        g_gamma=decay,
        h0=state,
        ht=after,
        cu_seqlens=packing.offsets,
        split_offsets=packing.chunks.first,
        T=tokens,
        H=heads,
        K=key_dim,
        V=value_dim,
        **_FIXED,
    )
    return before, after


def _state_gradients(
    query: Tensor,
    gradient: Tensor,
    decay: Tensor,
    state: Tensor | None,
    of_states: Tensor | None,
    packing: Packing,
) -> Results:
    """Gradients of the states after each chunk, (1, chunks, heads, key_dim, value_dim), and of the state before each
    sequence, if there is one."""
    from fla.ops.common.chunk_h import chunk_bwd_kernel_dh

    (_, tokens, heads, key_dim), value_dim = query.shape, gradient.size(-1)
    after = query.new_empty(1, len(packing.chunks.places), heads, key_dim, value_dim, dtype=torch.float32)
    before = None if state is None else torch.empty_like(state, dtype=torch.float32)
    chunk_bwd_kernel_dh[_grid(packing, heads, key_dim, value_dim)](
        q=query,
        g_gamma=decay,
        do=gradient,
        dh=after,
        dht=of_states,
        dh0=before,
        cu_seqlens=packing.offsets,
        split_offsets=packing.chunks.first,
        scale=1.0,
        T=tokens,
        HQ=heads,
        H=heads,
        K=key_dim,
        V=value_dim,
        NG=1,
        **_FIXED,
    )
    return after, before


def _grid(packing: Packing, heads: int, key_dim: int, value_dim: int) -> Any:
    """A program per sequence, head, and tile of the state."""

    def programs(tile: dict[str, int]) -> tuple[int]:
        tiles = -(-key_dim // tile["BK"]) * -(-value_dim // tile["BV"])
        return (tiles * len(packing.lengths) * heads,)

    return programs
