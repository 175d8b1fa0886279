"""The kernels of flash-linear-attention for retention, started without waiting for the device and by compiled code.

fla's own function interrupts compiled code. For packed sequences it also asks the device for the number of chunks three
times in each layer; here the host brings that number along. Kernels and arguments are the same, but for the states in
the backward pass: they are kept in the dtype of the tokens, to which fla's kernels round them before they use them, and
computed again only where they take much memory.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .compiled_kernel import compiled_kernel
from .fla_launches import Launches, Sequences, Sizes, kernels
from .retention_packing import Packing, Results

_LOG2_E = 1.4426950408889634
LARGEST_KEPT = 256 << 20
"""Bytes of a layer's states up to which they are kept for the backward pass."""


def are_known() -> bool:
    """Whether the installed kernels take the arguments that they get here."""
    return kernels() is not None


# as torch.compiler.assume_constant_result does, which imports torch's compiler, in seconds
are_known._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
    """Retention of rows, or of packed sequences, which lie one after the other in the rows.

    Args:
        query, key: (rows, tokens, heads, key_dim), of one dtype.
        value: (rows, tokens, heads, value_dim), of that dtype.
        log_decay: (heads,), float32.
        state: (rows or sequences, heads, key_dim, value_dim), float32, before the first tokens; None for zeros.
        packing: where the sequences lie; None for rows.
        need_state: whether states after the last tokens are returned.

    Returns:
        Output, shaped like value and of its dtype, and states, float32, or None.
    """
    places = (None, None, None) if packing is None else (packing.offsets, *packing.chunks)
    tensors = query, key, value, _to_base_2(log_decay), state, *places
    output, after = _Retention.apply(*tensors, need_state)  # type: ignore[no-untyped-call]
    return output, after if need_state else None


def _to_base_2(log_decay: Tensor) -> Tensor:
    """Logarithms to base 2, kept with the tensor of which they are until it is changed, since layers share it.

    What inference mode computes is not kept: no later training could use it.
    """
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return log_decay * _LOG2_E
    if log_decay.requires_grad or log_decay.is_inference():
        return log_decay * _LOG2_E
    version, found = getattr(log_decay, "to_base_2", (None, log_decay))
    if version != log_decay._version:
        found = log_decay * _LOG2_E
        log_decay.to_base_2 = log_decay._version, found  # type: ignore[attr-defined]
    return found


class _Retention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        decay: Tensor,
        state: Tensor | None,
        offsets: Tensor | None,
        first: Tensor | None,
        places: Tensor | None,
        need_state: bool,
    ) -> tuple[Tensor, Tensor]:
        tensors = query, key, value, decay, state, offsets, first, places
        output, after, before = fla_forward(*tensors, need_state)
        ctx.save_for_backward(*tensors, before)
        ctx.need_state = need_state
        return output, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_after: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        *of_tokens, of_state = fla_backward(*(*saved, gradient, of_after if ctx.need_state else None))
        return (*of_tokens, None, None if saved[4] is None else of_state, None, None, None, None)


def _like_outputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    state: Tensor | None,
    offsets: Tensor | None,
    first: Tensor | None,
    places: Tensor | None,
    need_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = Sizes.of(key, value, Sequences(offsets, first, places))
    after = (sizes.sequences, *sizes.state) if need_state else (0,)
    before = sizes.shape_of_states() if _are_kept(sizes, key) else (0,)
    return value.new_empty(value.shape), value.new_empty(after, dtype=torch.float32), key.new_empty(before)


def _are_kept(sizes: Sizes, key: Tensor) -> bool:
    return math.prod(sizes.shape_of_states()) * key.element_size() <= LARGEST_KEPT


@compiled_kernel(_like_outputs)
def fla_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    state: Tensor | None,
    offsets: Tensor | None,
    first: Tensor | None,
    places: Tensor | None,
    need_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, states after the last tokens, which are empty unless needed, and states before each chunk, which are
    empty if they are to be computed again; arguments as for ``retention_by_fla``, with decays to base 2."""
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    launches = Launches(query, key, value, decay, Sequences(offsets, first, places))
    sizes = launches.sizes
    after = key.new_empty((sizes.sequences, *sizes.state) if need_state else (0,), dtype=torch.float32)
    before = launches.states(None if state is None else state.contiguous(), after if need_state else None)
    return launches.output(before), after, before if _are_kept(sizes, key) else key.new_empty(0)


def _like_inputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    state: Tensor | None,
    offsets: Tensor | None,
    first: Tensor | None,
    places: Tensor | None,
    before: Tensor,
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
    decay: Tensor,
    state: Tensor | None,
    offsets: Tensor | None,
    first: Tensor | None,
    places: Tensor | None,
    before: Tensor,
    gradient: Tensor,
    of_after: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and state, the last of them empty without a state.

    Args:
        before: states before each chunk; empty: they are computed again.
        gradient: of the output.
        of_after: of the states after the last tokens, if they are used.
    """
    query, key, value, gradient = query.contiguous(), key.contiguous(), value.contiguous(), gradient.contiguous()
    launches = Launches(query, key, value, decay, Sequences(offsets, first, places))
    state = None if state is None else state.contiguous()
    if before.numel() == 0:
        before = launches.states(state, None)
    of_state = query.new_empty((0,) if state is None else state.shape, dtype=torch.float32)
    of_last = None if of_after is None else of_after.contiguous()
    of_before = launches.gradients_of_states(gradient, of_last, None if state is None else of_state)
    return *launches.gradients(gradient, before, of_before), of_state
