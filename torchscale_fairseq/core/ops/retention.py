"""Retention in three forms that compute the same.

"Retentive Network", arXiv:2307.08621. With a decay gamma per head, the state after token n is
S_n = gamma S_(n-1) + k_n^T v_n, and the output o_n = q_n S_n. Nothing is normalised here: a caller who wants scores
on one scale scales the queries (``retention_tables``).

Arguments that all forms take:

    query, key: (batch, seq, heads, key_dim), rotated and scaled.
    value: (batch, seq, heads, value_dim).
    log_decay: (heads,), natural log of gamma; negative.
    padding_mask: (batch, seq), True for tokens that are not there: the state neither takes them in nor decays.
    document_starts: (batch, seq), True for tokens before which the state is emptied.
    state: (batch, heads, key_dim, value_dim) before the first token, or None for zeros.

All return the output, shaped like value, and the state after the last token. Both are float32 at least, whatever the
inputs, and float64 for float64 inputs; autocasting does not reach inside.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

RetentionResult = tuple[Tensor, Tensor]
_Form = Callable[..., RetentionResult]
_TOKENS_AT_A_TIME = 1024


def _in_full_precision(form: _Form) -> _Form:
    """The form with its inputs in float32 at least."""

    @functools.wraps(form)
    def widened(query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, **options: Any) -> RetentionResult:
        wide = torch.promote_types(query.dtype, torch.float32)
        state = options.pop("state", None)
        with torch.autocast(query.device.type, enabled=False):
            tensors = [x.to(wide) for x in (query, key, value, log_decay)]
            return form(*tensors, **options, state=None if state is None else state.to(wide))

    return widened


@_in_full_precision
def recurrent_retention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    *,
    padding_mask: Tensor | None = None,
    document_starts: Tensor | None = None,
    state: Tensor | None = None,
    overwrite_state: bool = False,
) -> RetentionResult:
    """Retention token by token (sec. 2.1, eq. 6): the definition, and the way to decode.

    Args:
        overwrite_state: the given state may become the returned one, where no gradient is computed; decoding, which
            mostly moves states through memory, is faster for it.
    """
    in_place = overwrite_state and not torch.is_grad_enabled()
    if state is None:
        state = query.new_zeros(query.size(0), query.size(2), query.size(3), value.size(3))
    key = _without_padding(key, padding_mask)
    outputs = []
    for t in range(query.size(1)):
        decay = log_decay.exp().view(1, -1, 1, 1)
        if padding_mask is not None:
            decay = torch.where(padding_mask[:, t].view(-1, 1, 1, 1), 1.0, decay)
        if document_starts is not None:
            decay = decay * ~document_starts[:, t].view(-1, 1, 1, 1)
        state = state.mul_(decay) if in_place else state * decay
        state = state.addcmul_(key[:, t].unsqueeze(-1), value[:, t].unsqueeze(-2))
        outputs.append((query[:, t].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1), state


@_in_full_precision
def parallel_retention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    *,
    padding_mask: Tensor | None = None,
    document_starts: Tensor | None = None,
    state: Tensor | None = None,
) -> RetentionResult:
    """Retention of all tokens at once (sec. 2.1, eq. 5), in time and memory quadratic in the length."""
    return _by_chunks(query, key, value, log_decay, padding_mask, document_starts, state, query.size(1))


@_in_full_precision
def chunkwise_retention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    *,
    chunk_size: int,
    padding_mask: Tensor | None = None,
    document_starts: Tensor | None = None,
    state: Tensor | None = None,
) -> RetentionResult:
    """Retention of all chunks at once and from chunk to chunk by their states (sec. 2.1, eq. 7), in time and memory
    linear in the length.

    Args:
        chunk_size: tokens; the last chunk may be shorter.

    Raises:
        ValueError: chunk_size is below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size ({chunk_size}) must be at least 1.")
    outputs = []
    sizes = _parts(query.size(1), chunk_size)
    tensors = [_split(x, sizes) for x in (query, key, value, padding_mask, document_starts)]
    for size, q, k, v, padding, starts in zip(sizes, *tensors, strict=True):
        assert q is not None and k is not None and v is not None
        output, state = _by_chunks(q, k, v, log_decay, padding, starts, state, min(size, chunk_size))
        outputs.append(output)
    assert state is not None
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)), state


def _parts(length: int, chunk_size: int) -> list[int]:
    """Lengths to work on at a time: whole chunks, as many as keep temporary tensors small, and the rest."""
    whole, rest = length - length % chunk_size, length % chunk_size
    part = max(_TOKENS_AT_A_TIME // chunk_size, 1) * chunk_size
    sizes = [part] * (whole // part) + [whole % part, rest]
    return [size for size in sizes if size]


def _split(x: Tensor | None, sizes: list[int]) -> Sequence[Tensor | None]:
    return [None] * len(sizes) if x is None else x.split(sizes, 1)


class _Product(torch.autograd.Function):
    """a @ b that keeps its operands as they are for the backward pass.

    torch keeps contiguous copies of them, which for views of queries, keys and values doubles the memory.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return gradient @ b.transpose(-1, -2), a.transpose(-1, -2) @ gradient


class _Additions(torch.autograd.Function):
    """(key * decay)^T @ value, with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, key: Tensor, decay: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(key, decay, value)
        return (key * decay).transpose(-1, -2) @ value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        key, decay, value = ctx.saved_tensors
        of_decayed = value @ gradient.transpose(-1, -2)
        of_decay = (of_decayed * key).sum_to_size(decay.shape) if ctx.needs_input_grad[1] else None
        return of_decayed * decay, of_decay, (key * decay) @ gradient


def _product(a: Tensor, b: Tensor) -> Tensor:
    """(..., m, n) times (..., n, k), with equal leading axes."""
    return _Product.apply(a, b)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Clock:
    """When the tokens of each chunk come; all (batch or 1, 1, chunks or 1, chunk_size)."""

    time: Tensor
    """Real tokens of the chunk up to and including this one."""
    document: Tensor | None
    """Documents begun in the chunk up to here."""

    def decay_between(self, log_decay: Tensor) -> Tensor:
        """Weight of key m for query n, (batch or 1, heads, chunks or 1, n, m); zero if n does not see m."""
        size = self.time.size(-1)
        elapsed = self.time.unsqueeze(-1) - self.time.unsqueeze(-2)
        hidden = torch.ones(size, size, dtype=torch.bool, device=elapsed.device).triu(1)
        if self.document is not None:
            hidden = hidden | (self.document.unsqueeze(-1) != self.document.unsqueeze(-2))
        return (elapsed.clamp_min(0) * log_decay.view(-1, 1, 1, 1)).exp().masked_fill(hidden, 0.0)

    def decay_from_start(self, log_decay: Tensor) -> Tensor:
        """Weight of the state before the chunk for each token, (batch or 1, heads, chunks or 1, n)."""
        decay = (self.time * log_decay.view(-1, 1, 1)).exp()
        return decay if self.document is None else decay.masked_fill(self.document > 0, 0.0)

    def decay_to_end(self, log_decay: Tensor) -> Tensor:
        """Weight of each token in the state after the chunk, (batch or 1, heads, chunks or 1, n)."""
        decay = ((self.time[..., -1:] - self.time) * log_decay.view(-1, 1, 1)).exp()
        return decay if self.document is None else decay.masked_fill(self.document < self.document[..., -1:], 0.0)


def _clock(padding_mask: Tensor | None, document_starts: Tensor | None, chunk_size: int, like: Tensor) -> _Clock:
    def counted(events: Tensor) -> Tensor:
        return events.unflatten(1, (-1, chunk_size)).unsqueeze(1).to(like.dtype).cumsum(-1)

    if padding_mask is None:
        time = torch.arange(1, chunk_size + 1, dtype=like.dtype, device=like.device).view(1, 1, 1, -1)
    else:
        time = counted(~padding_mask)
    return _Clock(time, None if document_starts is None else counted(document_starts))


def _by_chunks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    padding_mask: Tensor | None,
    document_starts: Tensor | None,
    state: Tensor | None,
    chunk_size: int,
) -> RetentionResult:
    """Retention of whole chunks. Axes inside are (batch, heads, chunks, token, dim)."""
    clock = _clock(padding_mask, document_starts, chunk_size, query)
    key = _without_padding(key, padding_mask)
    query, key, value = (x.unflatten(1, (-1, chunk_size)).permute(0, 3, 1, 2, 4) for x in (query, key, value))
    output = _product(_product(query, key.transpose(-1, -2)) * clock.decay_between(log_decay), value)
    to_end = clock.decay_to_end(log_decay).unsqueeze(-1)
    additions = _Additions.apply(key, to_end, value)  # type: ignore[no-untyped-call]
    fresh = state is None
    if state is None:
        state = torch.zeros_like(additions[:, :, 0])
    decay = clock.decay_from_start(log_decay).unsqueeze(-1)
    before, state = _states(state, additions, decay[..., -1:, :])
    if not fresh or before.size(2) > 1:
        output = torch.addcmul(output, _product(query, before), decay)
    return output.permute(0, 2, 3, 1, 4).flatten(1, 2), state


def _states(state: Tensor, additions: Tensor, decay: Tensor) -> RetentionResult:
    """The states before each chunk, (batch, heads, chunks, key_dim, value_dim), and the one after the last.

    Args:
        state: before the first chunk.
        additions: what each chunk adds, shaped like the result.
        decay: of the state over each chunk, (batch or 1, heads, chunks or 1, 1, 1).
    """
    before = []
    decays = decay.expand(-1, -1, additions.size(2), -1, -1)
    for addition, chunk_decay in zip(additions.unbind(2), decays.unbind(2), strict=True):
        before.append(state)
        state = torch.addcmul(addition, state, chunk_decay)
    return torch.stack(before, 2), state


def _without_padding(key: Tensor, padding_mask: Tensor | None) -> Tensor:
    return key if padding_mask is None else key.masked_fill(padding_mask[:, :, None, None], 0.0)
