"""The one function through which retention is computed, and the choice of its form and of what computes it."""

import functools
import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import fla_kernels
from .backend import AUTO, Backend, choose
from .documents import known_documents
from .fla_tuning import tune_less
from .masks import is_traced
from .retention import RetentionResult, chunkwise_retention, parallel_retention
from .retention_packing import Packing, Results, packed_retention
from .retention_step import retention_step
from .retention_tables import RetentionTables

CHUNKWISE_ABOVE = 384
"""Tokens above which the chunkwise form, at its default chunk size, is faster than the parallel one
(docs/performance.md)."""
_HAS_FLA = importlib.util.find_spec("fla") is not None


def retention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    *,
    rotation: RetentionTables | None = None,
    chunkwise: bool = False,
    chunk_size: int = 128,
    backend: str = "auto",
    overwrite_state: bool = False,
    need_state: bool = True,
    packing: Packing | None = None,
    **options: Any,
) -> Results:
    """Retention in the form that suits the length; all forms compute the same.

    Args:
        query, key, value, log_decay, options: as for every form (``ops.retention``).
        rotation: rotates and scales query and key; None where that has been done.
        chunkwise: the chunkwise form, whatever the length, except for single tokens.
        chunk_size: tokens per chunk of that form.
        backend: of more than single tokens, the name of one in ``RETENTION``: torch; fla (the chunkwise kernel of
            flash-linear-attention); or auto, the first that serves the request.
        overwrite_state: of single tokens, as for ``recurrent_retention``.
        need_state: whether the state after the last token is needed; fla's kernel stores none without it.
        packing: of the masks, from ``packing_for`` with the same arguments; None: made where it is needed, which
            interrupts compiled code.

    Returns:
        Output and state, as every form; the output of fla's kernel is in the dtype of the values. The state may be
        None where it is not needed.

    Raises:
        InputError: the backend is unknown or cannot serve the request.
    """
    inputs = query, key, value, log_decay
    if query.size(1) == 1:
        return retention_step(*inputs, rotation, overwrite_state=overwrite_state, **options)
    request = RetentionRequest(*inputs, chunkwise, chunk_size, options, rotation, need_state, packing)
    chosen = choose(
        RETENTION,
        request,
        backend,
        option="retention_backend",
        instead="auto",
        explain=value.device.type == "cuda",
    )
    return chosen.run(request)


@dataclass(frozen=True)
class RetentionRequest:
    """A request to ``retention`` for several tokens; arguments as there."""

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor
    chunkwise: bool
    chunk_size: int
    options: dict[str, Any]
    rotation: RetentionTables | None = None
    need_state: bool = True
    packing: Packing | None = None

    def tensors(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first arguments of every form; a rotation results in this dtype, float32 at least by default."""
        query, key = self.query, self.key
        if self.rotation is not None:
            query, key = self.rotation.rotate(query, key, dtype)
        return query, key, self.value, self.log_decay


class Fla:
    """The kernel of flash-linear-attention."""

    name = "fla"

    def refusal(self, request: RetentionRequest) -> str | None:
        """It serves half precision on a GPU; exported code, which cannot count sequences, only without padding."""
        return _fla_refusal(request.value, **request.options)

    def run(self, request: RetentionRequest) -> Results:
        """``fla_retention``, of rows or of packed sequences."""
        # In float16 queries and keys are balanced before they are rounded.
        dtype = torch.bfloat16 if request.value.dtype == torch.bfloat16 else None
        options, tensors = request.options, request.tensors(dtype)
        if options.get("padding_mask") is None and options.get("document_starts") is None:
            return _by_fla(*tensors, options.get("state"), None, need_state=request.need_state)
        if request.packing is not None:
            return _packed(*tensors, request.packing, options.get("state"), need_state=request.need_state)
        if not torch.compiler.is_compiling():
            return _packed_by_fla(*tensors, options, need_state=request.need_state)
        from .uncompiled import run_uncompiled

        found: Results = run_uncompiled(_packed_by_fla, *tensors, options, need_state=request.need_state)
        return found


class Torch:
    """The parallel form, and the chunkwise one where it is faster or requested."""

    name = "torch"

    def refusal(self, request: RetentionRequest) -> None:
        """It serves every request."""

    def run(self, request: RetentionRequest) -> RetentionResult:
        """``chunkwise_retention`` or ``parallel_retention``."""
        if request.chunkwise or request.query.size(1) > CHUNKWISE_ABOVE:
            return chunkwise_retention(*request.tensors(), chunk_size=request.chunk_size, **request.options)
        return parallel_retention(*request.tensors(), **request.options)


def fla_retention(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, *, state: Tensor | None = None
) -> RetentionResult:
    """Retention by flash-linear-attention, through its kernel that takes the decays as an argument.

    Queries and keys are rounded to the dtype of the values, and so are the states between chunks; the kernel
    accumulates in float32. The output is in the dtype of the values. Widths that the kernel refuses, the odd ones, are
    made even.
    """
    output, after = _by_fla(query, key, value, log_decay, state, None, need_state=True)
    assert after is not None
    return output, after


def packing_for(
    x: Tensor,
    backend: str,
    *,
    padding_mask: Tensor | None,
    document_starts: Tensor | None,
    need_state: bool,
) -> Packing | None:
    """Where the sequences lie that fla's kernels are to compute, for all layers: compiled ones cannot count them.

    Args:
        x: input of the layers.
        backend, padding_mask, document_starts, need_state: as for ``retention``.

    Returns:
        None for rows without padding and documents, and where another backend serves them.
    """
    if (padding_mask is None and document_starts is None) or backend not in (AUTO, Fla.name):
        return None
    if _fla_refusal(x, padding_mask, document_starts) is not None:
        return None
    return _counted(padding_mask, document_starts, need_state=need_state)


def _counted(padding_mask: Tensor | None, document_starts: Tensor | None, *, need_state: bool) -> Packing:
    """Sequences with their chunks. Padding makes up documents of its own where the host knows them."""
    if not need_state and document_starts is not None and known_documents(document_starts) is not None:
        padding_mask = None
    packing = Packing.of(padding_mask, document_starts)
    _ = packing.chunks
    return packing


def _packed_by_fla(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, options: dict[str, Any], *, need_state: bool
) -> Results:
    """Packed sequences, which are counted here; compiled code cannot count them."""
    packing = _counted(options.get("padding_mask"), options.get("document_starts"), need_state=need_state)
    return _packed(query, key, value, log_decay, packing, options.get("state"), need_state=need_state)


def _packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    packing: Packing,
    state: Tensor | None,
    *,
    need_state: bool,
) -> Results:
    # a lambda, since torch 2.6 cannot compile annotations of functions within functions
    return packed_retention(
        lambda q, k, v, before, where: _by_fla(q, k, v, log_decay, before, where, need_state=need_state),
        query,
        key,
        value,
        packing,
        state=state,
    )


def _by_fla(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    packing: Packing | None,
    *,
    need_state: bool,
) -> Results:
    """``fla_retention``. With a packing the rows hold its sequences, and states are those of the sequences."""
    width = value.size(-1)
    state = None if state is None else _even(state.to(torch.float32))
    balance = _balance(log_decay) if value.dtype == torch.float16 else None
    if balance is not None:
        query, key = query / balance, key * balance
        state = None if state is None else state * balance.unsqueeze(-1)
    tensors = query.to(value.dtype), key.to(value.dtype), _even(value), log_decay.to(torch.float32)
    output, final = _chunk_kernels(*tensors, state, packing, need_state=need_state)
    if value.size(-1) % 2:
        output, final = output[..., :width], None if final is None else final[..., :width]
    if balance is not None and final is not None:
        final = final / balance.unsqueeze(-1)
    return output, final


def _chunk_kernels(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    packing: Packing | None,
    *,
    need_state: bool,
) -> Results:
    """``_by_fla`` of what the kernels take. The state after the last token is None if it is not needed."""
    if fla_kernels.are_known():
        return fla_kernels.retention_by_fla(query, key, value, log_decay, state, packing, need_state=need_state)
    from fla.ops.simple_gla import chunk_simple_gla

    if not torch.compiler.is_compiling():
        tune_less()
    # fla takes packed sequences as one row
    tokens = (query, key, value) if packing is None else (x.flatten(0, 1).unsqueeze(0) for x in (query, key, value))
    output, final = chunk_simple_gla(
        *tokens,
        g_gamma=log_decay,
        scale=1.0,
        initial_state=state,
        output_final_state=need_state,
        cu_seqlens=None if packing is None else packing.offsets,
    )
    return output.view_as(value), final


def _even(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1)) if x.size(-1) % 2 else x


def _balance(log_decay: Tensor) -> Tensor:
    """Factor of the keys and divisor of the queries, (heads, 1), so that the states of slow decays fit float16: a power
    of two, which rounds nothing, near the square root of 1 - gamma."""
    return (-torch.expm1(log_decay)).log2().div(2).floor().exp2().to(torch.float32).unsqueeze(-1)


def _fla_refusal(
    value: Tensor,
    padding_mask: Tensor | None = None,
    document_starts: Tensor | None = None,
    state: Tensor | None = None,
) -> str | None:
    if not _HAS_FLA:
        return "needs the package fla-core (pip install fla-core), the kernels of flash-linear-attention"
    if value.device.type != "cuda":
        return f"needs a GPU, not {value.device.type}"
    if value.dtype not in (torch.float16, torch.bfloat16):
        return f"needs fp16 or bf16, not {value.dtype}, whose products it would round to TF32"
    if _capability(value.device) < 8:
        return "needs a GPU of compute capability 8.0 or later"
    if is_traced() and (padding_mask is not None or document_starts is not None):
        return "knows no padding and no packed documents in exported code"
    return None if torch.compiler.is_compiling() else _import_failure()


@functools.cache
def _capability(device: torch.device) -> int:
    """The first number of a GPU's compute capability."""
    return int(torch.cuda.get_device_properties(device).major)


@functools.cache
def _import_failure() -> str | None:
    """The fault of the installed package, or of a package that it imports (triton, transformers)."""
    try:
        importlib.import_module("fla.ops.simple_gla")
    except Exception as error:
        return f"is installed and cannot be imported ({type(error).__name__}: {error})"
    return None


RETENTION: list[Backend[RetentionRequest, Results]] = [Fla(), Torch()]
"""The backends of ``retention`` over several tokens, in order of preference."""
