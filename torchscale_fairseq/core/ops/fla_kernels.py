"""The kernels of flash-linear-attention for retention, started without waiting for the device and by compiled code.

fla's own function interrupts compiled code. For packed sequences it also asks the device for the number of chunks three
times in each layer, so that the host, which has to start every kernel, falls behind; here the host brings that number
along. Kernels and arguments are the same.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .compiled_kernel import compiled_kernel
from .fla_tuning import tune_less
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


def are_known() -> bool:
    """Whether the installed kernels of the states take the arguments that they get here (fla-core 0.6); they are
    internal to fla. The kernels' decays are powers of two then."""
    return _are_known()


# as torch.compiler.assume_constant_result does, which imports torch's compiler, in seconds
are_known._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _are_known() -> bool:
    try:
        from fla.ops.common.chunk_h import chunk_bwd_kernel_dh, chunk_fwd_kernel_h
        from fla.ops.simple_gla.chunk import RCP_LN2  # noqa: F401
    except ImportError:
        return False
    kernels = (chunk_fwd_kernel_h, _OF_STATES), (chunk_bwd_kernel_dh, _OF_GRADIENTS)
    return all(list(getattr(kernel, "arg_names", ())) == names.split() for kernel, names in kernels)


def retention_by_fla(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    packing: Packing | None,
    *,
    need_state: bool,
) -> Results:
    """Retention of rows, or of packed sequences.

    Args:
        query, key: (rows, tokens, heads, key_dim), of one dtype; one row of packed sequences.
        value: (rows, tokens, heads, value_dim), of that dtype.
        log_decay: (heads,), float32.
        state: (rows or sequences, heads, key_dim, value_dim), float32, before the first tokens; None for zeros.
        packing: where the sequences lie; None for rows.
        need_state: whether states after the last tokens are returned.

    Returns:
        Output, shaped like value and of its dtype, and states, float32, or None.
    """
    places = (None, None, None) if packing is None else (packing.offsets, *packing.chunks)
    tensors = query, key, value, log_decay, state, *places
    output, after = _Retention.apply(*tensors, need_state)  # type: ignore[no-untyped-call]
    return output, after if need_state else None


class _Retention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        log_decay: Tensor,
        state: Tensor | None,
        offsets: Tensor | None,
        first: Tensor | None,
        places: Tensor | None,
        need_state: bool,
    ) -> tuple[Tensor, Tensor]:
        tensors = query, key, value, log_decay, state, offsets, first, places
        ctx.save_for_backward(*tensors)
        ctx.need_state = need_state
        return fla_forward(*tensors, need_state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_after: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, log_decay, state, offsets, first, places = ctx.saved_tensors
        of_states = of_after if ctx.need_state else None
        *of_tokens, of_state = fla_backward(
            query, key, value, log_decay, state, offsets, first, places, gradient, of_states
        )
        return (*of_tokens, None, None if state is None else of_state, None, None, None, None)


class _Sizes(NamedTuple):
    """Sizes of states."""

    rows: int
    chunks: int
    """Chunks of a row, or of the one row of packed sequences."""
    sequences: int
    """Rows, or packed sequences."""
    state: tuple[int, int, int]
    """Heads, key_dim and value_dim."""

    @classmethod
    def of(cls, key: Tensor, value: Tensor, offsets: Tensor | None, places: Tensor | None) -> "_Sizes":
        """From tokens, where sequences begin, and the places of their chunks (``Chunks``)."""
        rows, tokens, heads, key_dim = key.shape
        state = (heads, key_dim, value.size(-1))
        if offsets is None or places is None:
            return cls(rows, -(-tokens // CHUNK), rows, state)
        return cls(rows, places.size(0), offsets.size(0) - 1, state)

    def programs(self, tile: dict[str, int]) -> tuple[int]:
        """The grid of a kernel of states: a program per sequence, head, and tile of the state."""
        heads, key_dim, value_dim = self.state
        return (-(-key_dim // tile["BK"]) * -(-value_dim // tile["BV"]) * self.sequences * heads,)


def _like_outputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    offsets: Tensor | None,
    first: Tensor | None,
    places: Tensor | None,
    need_state: bool,
) -> tuple[Tensor, Tensor]:
    sizes = _Sizes.of(key, value, offsets, places)
    after = (sizes.sequences, *sizes.state) if need_state else (0,)
    return value.new_empty(value.shape), value.new_empty(after, dtype=torch.float32)


@compiled_kernel(_like_outputs)
def fla_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    offsets: Tensor | None,
    first: Tensor | None,
    places: Tensor | None,
    need_state: bool,
) -> tuple[Tensor, Tensor]:
    """Output and states after the last tokens, which are empty unless needed; arguments as for ``retention_by_fla``."""
    from fla.ops.common.chunk_o import chunk_fwd_o

    tune_less()
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    after = _like_outputs(query, key, value, log_decay, state, offsets, first, places, need_state)[1]
    options = _within_chunks(log_decay, offsets, places)
    last = after if need_state else None
    before = _states(key, value, options["g_gamma"], state, offsets, first, places, last, key.dtype)
    return chunk_fwd_o(q=query, k=key, v=value, h=before, **options), after


def _like_inputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    offsets: Tensor | None,
    first: Tensor | None,
    places: Tensor | None,
    gradient: Tensor,
    of_after: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_tokens = (x.new_empty(x.shape) for x in (query, key, value))
    of_state = query.new_empty((0,) if state is None else state.shape, dtype=torch.float32)
    return (*of_tokens, of_state)  # type: ignore[return-value]


@compiled_kernel(_like_inputs)
def fla_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    offsets: Tensor | None,
    first: Tensor | None,
    places: Tensor | None,
    gradient: Tensor,
    of_after: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and state, the last of them empty without a state.

    Args:
        gradient: of the output.
        of_after: of the states after the last tokens, if they are used.
    """
    from fla.ops.common.chunk_h import chunk_bwd_kernel_dh
    from fla.ops.common.chunk_o import chunk_bwd_dqkwg, chunk_bwd_dv

    query, key, value, gradient = query.contiguous(), key.contiguous(), value.contiguous(), gradient.contiguous()
    options, sizes = _within_chunks(log_decay, offsets, places), _Sizes.of(key, value, offsets, places)
    before = _states(key, value, options["g_gamma"], state, offsets, first, places, None, torch.float32)
    of_before = torch.empty_like(before)
    of_state = query.new_empty((0,) if state is None else state.shape, dtype=torch.float32)
    chunk_bwd_kernel_dh[sizes.programs](
        q=query,
        g_gamma=options["g_gamma"],
        do=gradient,
        dh=of_before,
        dht=None if of_after is None else of_after.contiguous(),
        dh0=None if state is None else of_state,
        cu_seqlens=offsets,
        split_offsets=first,
        scale=1.0,
        T=key.size(1),
        HQ=key.size(2),
        H=key.size(2),
        K=key.size(3),
        V=value.size(3),
        NG=1,
        **_FIXED,
    )
    of_query, of_key, *_ = chunk_bwd_dqkwg(q=query, k=key, v=value, do=gradient, h=before, dh=of_before, **options)
    return of_query, of_key, chunk_bwd_dv(q=query, k=key, do=gradient, dh=of_before, **options), of_state


def _within_chunks(log_decay: Tensor, offsets: Tensor | None, places: Tensor | None) -> dict[str, Any]:
    """Arguments of fla's functions for the tokens of a chunk, besides tensors of tokens and states."""
    from fla.ops.utils.constant import RCP_LN2

    sequences = {"cu_seqlens": offsets, "chunk_indices": places}
    return {"g_gamma": log_decay * RCP_LN2, "scale": 1.0, "chunk_size": CHUNK, **sequences}


def _states(
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    state: Tensor | None,
    offsets: Tensor | None,
    first: Tensor | None,
    places: Tensor | None,
    last: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """States before each chunk, (rows, chunks, heads, key_dim, value_dim), of a dtype. Those after the sequences are
    written to ``last``, if it is given."""
    from fla.ops.common.chunk_h import chunk_fwd_kernel_h

    sizes = _Sizes.of(key, value, offsets, places)
    before = key.new_empty(sizes.rows, sizes.chunks, *sizes.state, dtype=dtype)
    chunk_fwd_kernel_h[sizes.programs](
        k=key,
        v=value,
        h=before,
        g_gamma=decay,
        h0=None if state is None else state.contiguous(),
        ht=last,
        cu_seqlens=offsets,
        split_offsets=first,
        T=key.size(1),
        H=key.size(2),
        K=key.size(3),
        V=value.size(3),
        **_FIXED,
    )
    return before
