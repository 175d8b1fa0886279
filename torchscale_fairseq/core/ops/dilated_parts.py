"""Dilated attention branch by branch, in what every kernel of attention can compute.

``dilated_pattern`` defines it and ``dilated_layout`` finds kept tokens in memory. Here a kernel computes each branch's
softmax, and the branches' outputs are averaged by their denominators.

Terms:
    branch: a pattern, that is a segment length and a dilation ratio.
    kept: the tokens that a head keeps of a segment.
    real: tokens that are not padding.
    missing: places of kept tokens that are padding, or lie past the end of a segment.
    part: one call of a kernel, for the kept queries of a stretch of the sequence; each branch is at least one.
    remote: keys and values that other processes hold (``parallel.dilated``).
    blind: queries that see no key; their output is zero.

Axes: batch, seq, heads, head_dim; (segments) of a branch; (kept) tokens of a segment.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dilated_layout import Layout
from .partial_attention import Partial, PartialRequest, Scores, choose_kernel

Tensors = tuple[Tensor, Tensor, Tensor]
"""Query, key and value, or what belongs to them."""


class Settings(NamedTuple):
    """How parts are computed, as ``dilated_attention`` has it."""

    scale: float
    dropout: float = 0.0
    backend: str = "sdpa"
    detach: bool = False
    """Parts are branches, whose weights carry no gradient."""


class Part(NamedTuple):
    """One call of a kernel: kept queries of a stretch of the sequence attend to kept keys."""

    tokens: slice
    """The stretch."""
    layout: Layout
    """Layout of the stretch."""
    causal: bool
    remote: int | None = None
    """Which keys and values from outside the queries see, all of them; None for those of the stretch itself."""
    hidden: Tensor | None = None
    """(batch or 1, heads, keys), True for keys from outside that do not exist."""


class _Call:
    """A part's call of a kernel.

    Args:
        part: what to compute.
        query: (batch, seq, heads, head_dim).
        real: (batch, seq), True for tokens; None for all.
        settings: the rest.
    """

    def __init__(self, part: Part, query: Tensor, real: Tensor | None, settings: Settings):
        start = range(query.size(1))[part.tokens].start
        self.rows = part.layout.rows(start, query.size(1))
        self.remote, self.backend = part.remote, settings.backend
        missing = part.layout.missing(None if real is None else real[:, part.tokens])
        # In causal attention order hides what is missing, which comes last.
        hidden = part.hidden if part.remote is not None else None if part.causal else missing
        if hidden is not None:
            # If all keys would be masked, mask none; the result for such queries is discarded.
            hidden = (hidden & ~hidden.all(-1, keepdim=True)).unsqueeze(2)
        self.scores = Scores(part.causal, hidden, settings.scale, settings.dropout)
        self.blind = missing
        """(batch * segments, heads, kept or 1), True for queries that do not exist or see nothing; None for none."""
        if part.hidden is not None:
            nothing = part.hidden.all(-1, keepdim=True)
            self.blind = nothing if missing is None else nothing | missing

    def forward(self, inputs: Tensors, remotes: Sequence[Tensor]) -> Partial:
        """The part's own softmax of query, key and value, as (batch, seq, heads, head_dim)."""
        operands = self._operands(inputs, remotes)
        request = PartialRequest(*operands, self.scores)
        return choose_kernel(request, self.backend).run(request)

    def backward(self, upstream: Tensor, of: Partial, inputs: Tensors, remotes: Sequence[Tensor]) -> Tensors:
        """The part's share of the gradients of a softmax with this output and log-sum-exp of its queries."""
        operands = self._operands(inputs, remotes)
        of = Partial(of.output, self.log_sum(of.log_sum_exp, float("inf")), of.random)
        kernel = choose_kernel(PartialRequest(*operands, self.scores), self.backend)
        return kernel.backward(upstream, *operands, of, self.scores)

    def log_sum(self, log_sum_exp: Tensor, of_blind: float = float("-inf")) -> Tensor:
        """The logarithms, with a value at blind queries by which they weigh nothing: -inf, or +inf as denominator."""
        return log_sum_exp if self.blind is None else log_sum_exp.masked_fill(self.blind, of_blind)

    def _operands(self, inputs: Tensors, remotes: Sequence[Tensor]) -> Tensors:
        if self.remote is None:
            query, key, value = map(self.rows.take, inputs)
            return query, key, value
        return self.rows.take(inputs[0]), remotes[2 * self.remote], remotes[2 * self.remote + 1]


def mix(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: list[Part],
    remotes: Sequence[Tensor] = (),
    *,
    real: Tensor | None,
    settings: Settings,
) -> Tensor:
    """All parts in one softmax.

    Args:
        query, key, value: (batch, seq, heads, head_dim).
        parts: what to mix.
        remotes: keys and values from outside in turn, (batch, heads, keys, head_dim) each, as the parts count them.
        real: (batch, seq), True for tokens; None for all.
        settings: the rest.

    Returns:
        Shaped like query; zero at padding and where no part has the query.
    """
    output: Tensor = _Mixture.apply(query, key, value, parts, real, settings, *remotes)  # type: ignore[no-untyped-call]
    return output if real is None else output.masked_fill(~real[:, :, None, None], 0.0)


class _Mixture(torch.autograd.Function):
    """The parts one by one, and their average.

    Forward keeps, for each query, the average so far and the logarithm of its denominator. With the final ones, a
    kernel's backward pass gives its part's share of the gradient of the one softmax that the average is. Where weights
    carry no gradient it gets the part's own ones instead, and the part's weight times the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        parts: list[Part],
        real: Tensor | None,
        settings: Settings,
        *remotes: Tensor,
    ) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        count = query.shape[:3].numel()
        whole = query.new_zeros(count + 1, query.size(3), dtype=wide)
        log_whole = query.new_full((count + 1,), float("-inf"), dtype=wide)
        so_far, log_so_far = whole[:-1].view(query.shape), log_whole[:-1].view(query.shape[:3])
        partials = []
        for part in parts:
            call = _Call(part, query, real, settings)
            partial = call.forward((query, key, value), remotes)
            log_sum, before = call.log_sum(partial.log_sum_exp), call.rows.take(log_so_far)
            merged = torch.logaddexp(before, log_sum)
            average = call.rows.take(so_far) * _share(before, merged)
            call.rows.put(whole, average.addcmul_(partial.output.to(wide), _share(log_sum, merged)))
            call.rows.put(log_whole, merged)
            partials.append(partial if settings.detach else partial.random)
            del partial, average  # frees their memory before the next ones are computed
        # torch 2.11 compiles wrong gradients of a result that was written in place (pytorch's issue 180642)
        result = so_far.to(query.dtype, copy=torch.compiler.is_compiling())
        ctx.save_for_backward(query, key, value, result, log_so_far, real, *remotes)
        ctx.parts, ctx.settings, ctx.partials = parts, settings, partials
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        query, key, value, result, log_whole, real, *remotes = ctx.saved_tensors
        settings: Settings = ctx.settings
        if real is not None:
            gradient = gradient.masked_fill(~real[:, :, None, None], 0.0)
        sums = [x.new_zeros(x.shape[:3].numel() + 1, x.size(3)) for x in (query, key, value)]
        of_remotes: list[Tensor | None] = [None] * len(remotes)
        for part, own in zip(ctx.parts, ctx.partials, strict=True):
            call = _Call(part, query, real, settings)
            upstream, log_sum = call.rows.take(gradient), call.rows.take(log_whole)
            if settings.detach:
                of, weight = own, _share(call.log_sum(own.log_sum_exp), log_sum)
                upstream = upstream * weight.to(gradient.dtype)
            else:
                of = Partial(call.rows.take(result), log_sum, own)
            shares = call.backward(upstream, of, (query, key, value), remotes)
            for into, share in zip(sums, shares if part.remote is None else shares[:1], strict=False):
                call.rows.add(into, share)
            if part.remote is not None:
                of_remotes[2 * part.remote : 2 * part.remote + 2] = shares[1:]
            del upstream, of, shares, share  # frees their memory before the next ones are computed
        return *(x[:-1].view(query.shape) for x in sums), None, None, None, *of_remotes


def _share(log_sum: Tensor, merged: Tensor) -> Tensor:
    """The share of a part in a whole, from the logarithms of their denominators; zero where both are empty."""
    return (log_sum - merged).exp().nan_to_num(0.0).unsqueeze(-1)
