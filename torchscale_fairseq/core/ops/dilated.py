"""Dilated attention: several patterns of segments, each of which keeps every r-th token, mixed in one softmax.

LongNet, arXiv:2307.02486, sec. 2.2. Branch k cuts a sequence into segments of w tokens, counted from its first real
token, and in each keeps, for head j, the tokens at offset j mod r, j mod r + r, ... Kept queries attend to kept keys of
their segment. The branches' outputs are averaged with the denominators of their softmax as weights (eq. 9-10), which
makes the whole one softmax in which a key counts as often as branches show it.

Axes: batch, seq, heads, head_dim; (segments) of a branch; (kept) tokens of a segment.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .attention import naive_attention
from .kernels import Partial, PartialRequest, Scores, choose_kernel
from .masks import is_traced, marked

Tensors = tuple[Tensor, Tensor, Tensor]
"""Query, key and value, or what belongs to them."""


class Branch(NamedTuple):
    """One pattern."""

    segment_length: int
    ratio: int


def dilated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_lengths: Sequence[int],
    dilation_ratios: Sequence[int],
    *,
    causal: bool = False,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str = "sdpa",
    torchscale_compatible: bool = False,
) -> Tensor:
    """Dilated attention in memory and, with segments of bounded length over ratio, time linear in the sequence.

    Each branch is one call of a kernel over its kept tokens, forward and backward. Which kernel, and what is written
    out because none serves it, is said by ``choose_kernel``.

    Args:
        query, key, value: (batch, seq, heads, head_dim).
        segment_lengths: tokens per segment, one entry per branch; longer than the sequence means all of it.
        dilation_ratios: keep every r-th token of a segment, one entry per branch.
        causal: a query sees keys up to its own position.
        key_padding_mask: (batch, seq), True for padding, left or right of a row's tokens. Nothing sees it, and the
            segments of a row begin at its first real token.
        scale: factor on the scores; head_dim ** -0.5 by default.
        dropout: probability to drop a weight of a branch; 0 outside training.
        backend: sdpa (torch's kernels), naive or flash_attn, as for ``choose_kernel``.
        torchscale_compatible: heads keep offsets in contiguous groups, and the weights of branches carry no gradient.

    Returns:
        (batch, seq, heads, head_dim); zero at padding, and for a head where no branch keeps a token.

    Raises:
        ValueError: the lists do not fit each other, an entry is below 1, there is padding between real tokens, or the
            backend cannot serve the request.
    """
    branches = checked_branches(segment_lengths, dilation_ratios)
    scale = query.size(-1) ** -0.5 if scale is None else scale
    real, starts = _extent(query, key_padding_mask)
    if starts is not None:
        query, key, value = (_roll(x, starts) for x in (query, key, value))
    batch, length, heads = query.shape[:3]
    parts = []
    for branch in branches:
        offsets = head_offsets(heads, branch.ratio, query.device, contiguous=torchscale_compatible)
        parts.append(Part(slice(length), Layout(branch, offsets, batch, length), causal))
    settings = Settings(scale, dropout, backend, detach=torchscale_compatible)
    output = mix(query, key, value, parts, real=real, settings=settings)
    return output if starts is None else _roll(output, -starts)


def naive_dilated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_lengths: Sequence[int],
    dilation_ratios: Sequence[int],
    *,
    causal: bool = False,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The definition: one softmax over all keys, with the logarithm of how many branches show a key added to its
    score. Arguments as for ``dilated_attention``."""
    shown = torch.zeros((), dtype=torch.long, device=query.device)
    for branch in checked_branches(segment_lengths, dilation_ratios):
        shown = shown + _shown(query, branch, key_padding_mask)
    visible = shown > 0
    if causal:
        visible = visible & torch.ones(query.size(1), query.size(1), dtype=torch.bool, device=query.device).tril()
    bias = shown.clamp(min=1).to(torch.promote_types(query.dtype, torch.float32)).log()
    scale = query.size(-1) ** -0.5 if scale is None else scale
    output, _ = naive_attention(query, key, value, visible=visible, bias=bias, scale=scale, dropout=0.0)
    return output


def _shown(query: Tensor, branch: Branch, key_padding_mask: Tensor | None) -> Tensor:
    """(batch, heads, seq, seq), 1 where the branch lets a query see a key, order aside."""
    batch, length, heads = query.shape[:3]
    position = torch.arange(length, device=query.device).expand(batch, length)
    real = torch.ones_like(position, dtype=torch.bool) if key_padding_mask is None else ~key_padding_mask
    position = position - real.to(torch.uint8).argmax(1, keepdim=True)
    segment, within = position // branch.segment_length, position % branch.segment_length
    offset = torch.arange(heads, device=query.device) % branch.ratio
    kept = (within[:, None] % branch.ratio == offset[None, :, None]) & real[:, None]
    same = segment[:, :, None] == segment[:, None, :]
    return (kept[:, :, :, None] & kept[:, :, None, :] & same[:, None]).long()


def checked_branches(segment_lengths: Sequence[int], dilation_ratios: Sequence[int]) -> list[Branch]:
    """One per entry of the two lists.

    Raises:
        ValueError: the lists do not fit each other, or an entry is below 1.
    """
    if not segment_lengths or len(segment_lengths) != len(dilation_ratios):
        raise ValueError(
            f"segment_lengths ({list(segment_lengths)}) and dilation_ratios ({list(dilation_ratios)}) must have one "
            "entry per branch each, and at least one."
        )
    for name, values in (("segment_lengths", segment_lengths), ("dilation_ratios", dilation_ratios)):
        if min(values) < 1:
            raise ValueError(f"{name} ({list(values)}) must be 1 or more.")
    return [Branch(*pair) for pair in zip(segment_lengths, dilation_ratios, strict=True)]


def _extent(query: Tensor, key_padding_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Which tokens are real once rows begin with their first real one, (batch, seq), and the rows' first real
    tokens; None where nothing is padded, or nothing on the left."""
    key_padding_mask = marked(key_padding_mask)
    if key_padding_mask is None:
        return None, None
    real = ~key_padding_mask
    starts, counts = real.to(torch.uint8).argmax(1), real.sum(1)
    aligned = torch.arange(query.size(1), device=query.device)[None] < counts[:, None]
    if is_traced():
        return aligned, starts
    if not torch.equal(_roll(real, starts), aligned):
        raise ValueError("key_padding_mask has padding between real tokens; it may stand left or right of them only.")
    return aligned, starts if starts.any() else None


def _roll(x: Tensor, shifts: Tensor) -> Tensor:
    """Each row of (batch, seq, ...) moved left by its shift, around the end."""
    index = (torch.arange(x.size(1), device=x.device)[None] + shifts[:, None]) % x.size(1)
    return x[torch.arange(x.size(0), device=x.device)[:, None], index]


def head_offsets(heads: int, ratio: int, device: torch.device, *, contiguous: bool = False) -> Tensor:
    """(heads,), offset that each head keeps; ``contiguous`` groups of heads share one in TorchScale's code."""
    head = torch.arange(heads, device=device)
    return head // -(-heads // ratio) if contiguous else head % ratio


class Rows:
    """Kept tokens among the rows (batch * seq * heads, ...) of a sequence.

    Positions past the end of a segment or sequence are placeholders: reads return an arbitrary row, writes go to a
    scratch row after the last one.
    """

    def __init__(self, index: Tensor | slice, kept: int, heads: int):
        self.index, self.kept, self.heads = index, kept, heads

    def take(self, x: Tensor) -> Tensor:
        """(batch, seq, heads, ...) to (batch * segments, heads, kept, ...)."""
        rows = x.flatten(0, 2)
        if isinstance(self.index, slice):
            rows = rows[self.index]
        else:
            rows = rows.index_select(0, self.index.clamp(max=rows.size(0) - 1))
        return rows.unflatten(0, (-1, self.kept, self.heads)).transpose(1, 2)

    def put(self, into: Tensor, x: Tensor) -> None:
        """Replace rows (batch * seq * heads + 1, ...) by kept tokens as ``take`` gives them."""
        if isinstance(self.index, slice):
            into[self.index] = x.transpose(1, 2).flatten(0, 2)
        else:
            into.index_copy_(0, self.index, x.transpose(1, 2).flatten(0, 2))

    def add(self, into: Tensor, x: Tensor) -> None:
        """Add to the rows."""
        if isinstance(self.index, slice):
            into[self.index] += x.transpose(1, 2).flatten(0, 2)
        else:
            into.index_add_(0, self.index, x.transpose(1, 2).flatten(0, 2))


class Layout:
    """How a branch's kept tokens lie in a sequence, or in a stretch of one.

    Args:
        branch: the pattern.
        offsets: (heads,), as ``head_offsets`` gives them.
        batch: sequences.
        length: tokens.
    """

    def __init__(self, branch: Branch, offsets: Tensor, batch: int, length: int):
        self.offsets, self.batch, self.length, self.ratio = offsets, batch, length, branch.ratio
        self.segment = min(branch.segment_length, length)
        self.segments = -(-length // self.segment)
        self.kept = -(-self.segment // branch.ratio)
        self.whole = length % self.segment == 0 and self.segment % branch.ratio == 0

    def rows(self, start: int, total: int) -> Rows:
        """Where they lie in sequences of ``total`` tokens, in which this is the stretch from ``start`` on."""
        heads = self.offsets.numel()
        if self.whole and self.ratio == 1 and (self.batch == 1 or self.length == total):
            return Rows(slice(start * heads, (start + self.batch * self.length) * heads), self.kept, heads)
        token, there = self._tokens()
        sequence = torch.arange(self.batch, device=token.device)[:, None, None, None] * total
        row = (sequence + start + token) * heads + torch.arange(heads, device=token.device)
        behind = self.batch * total * heads
        return Rows((row if self.whole else row.masked_fill(~there, behind)).flatten(), self.kept, heads)

    def take(self, x: Tensor) -> Tensor:
        """The kept tokens of (batch, seq, heads, ...), (batch * segments, heads, kept, ...); any where one does not
        exist."""
        return self.rows(0, self.length).take(x)

    def missing(self, real: Tensor | None) -> Tensor | None:
        """(batch * segments, heads, kept), True at tokens that do not exist or, (batch, seq), are not real; None if
        there are none."""
        if self.whole and real is None:
            return None
        _, there = self._tokens()
        there = there.expand(self.batch, -1, -1, -1).flatten(0, 1).transpose(1, 2)
        if real is None:
            return ~there
        return ~(there & self.take(real[:, :, None].expand(-1, -1, self.offsets.numel())))

    def _tokens(self) -> tuple[Tensor, Tensor]:
        """(segments, kept, heads), which tokens are kept, and whether they exist."""
        device = self.offsets.device
        within = torch.arange(self.kept, device=device)[:, None] * self.ratio + self.offsets
        token = torch.arange(self.segments, device=device)[:, None, None] * self.segment + within
        return token, (within < self.segment) & (token < self.length)


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
    guest: int | None = None
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
        self.guest, self.backend = part.guest, settings.backend
        missing = part.layout.missing(None if real is None else real[:, part.tokens])
        # In causal attention order hides what is missing, which comes last.
        hidden = part.hidden if part.guest is not None else None if part.causal else missing
        if hidden is not None:
            # If all keys would be masked, mask none; the result for such queries is discarded.
            hidden = (hidden & ~hidden.all(-1, keepdim=True)).unsqueeze(2)
        self.scores = Scores(part.causal, hidden, settings.scale, settings.dropout)
        self.blind = missing
        """(batch * segments, heads, kept or 1), True for queries that do not exist or see nothing; None for none."""
        if part.hidden is not None:
            nothing = part.hidden.all(-1, keepdim=True)
            self.blind = nothing if missing is None else nothing | missing

    def forward(self, inputs: Tensors, guests: Sequence[Tensor]) -> Partial:
        """The part's own softmax of query, key and value, as (batch, seq, heads, head_dim)."""
        operands = self._operands(inputs, guests)
        request = PartialRequest(*operands, self.scores)
        return choose_kernel(request, self.backend).run(request)

    def backward(self, upstream: Tensor, of: Partial, inputs: Tensors, guests: Sequence[Tensor]) -> Tensors:
        """The part's share of the gradients of a softmax with this output and log-sum-exp of its queries."""
        operands = self._operands(inputs, guests)
        of = Partial(of.output, self.log_sum(of.log_sum_exp, float("inf")), of.random)
        kernel = choose_kernel(PartialRequest(*operands, self.scores), self.backend)
        return kernel.backward(upstream, *operands, of, self.scores)

    def log_sum(self, log_sum_exp: Tensor, of_blind: float = float("-inf")) -> Tensor:
        """The logarithms, with a value at blind queries by which they weigh nothing: -inf, or +inf as denominator."""
        return log_sum_exp if self.blind is None else log_sum_exp.masked_fill(self.blind, of_blind)

    def _operands(self, inputs: Tensors, guests: Sequence[Tensor]) -> Tensors:
        if self.guest is None:
            query, key, value = map(self.rows.take, inputs)
            return query, key, value
        return self.rows.take(inputs[0]), guests[2 * self.guest], guests[2 * self.guest + 1]


def mix(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: list[Part],
    guests: Sequence[Tensor] = (),
    *,
    real: Tensor | None,
    settings: Settings,
) -> Tensor:
    """All parts in one softmax.

    Args:
        query, key, value: (batch, seq, heads, head_dim).
        parts: what to mix.
        guests: keys and values from outside in turn, (batch, heads, keys, head_dim) each, as the parts count them.
        real: (batch, seq), True for tokens; None for all.
        settings: the rest.

    Returns:
        Shaped like query; zero at padding and where no part has the query.
    """
    output: Tensor = _Mixture.apply(query, key, value, parts, real, settings, *guests)  # type: ignore[no-untyped-call]
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
        *guests: Tensor,
    ) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        count = query.shape[:3].numel()
        whole = query.new_zeros(count + 1, query.size(3), dtype=wide)
        log_whole = query.new_full((count + 1,), float("-inf"), dtype=wide)
        so_far, log_so_far = whole[:-1].view(query.shape), log_whole[:-1].view(query.shape[:3])
        partials = []
        for part in parts:
            call = _Call(part, query, real, settings)
            partial = call.forward((query, key, value), guests)
            log_sum, before = call.log_sum(partial.log_sum_exp), call.rows.take(log_so_far)
            merged = torch.logaddexp(before, log_sum)
            average = call.rows.take(so_far) * _share(before, merged)
            call.rows.put(whole, average.addcmul_(partial.output.to(wide), _share(log_sum, merged)))
            call.rows.put(log_whole, merged)
            partials.append(partial if settings.detach else partial.random)
            del partial, average  # frees their memory before the next ones are computed
        result = so_far.to(query.dtype)
        ctx.save_for_backward(query, key, value, result, log_so_far, real, *guests)
        ctx.parts, ctx.settings, ctx.partials = parts, settings, partials
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        query, key, value, result, log_whole, real, *guests = ctx.saved_tensors
        settings: Settings = ctx.settings
        if real is not None:
            gradient = gradient.masked_fill(~real[:, :, None, None], 0.0)
        sums = [x.new_zeros(x.shape[:3].numel() + 1, x.size(3)) for x in (query, key, value)]
        of_guests: list[Tensor | None] = [None] * len(guests)
        for part, own in zip(ctx.parts, ctx.partials, strict=True):
            call = _Call(part, query, real, settings)
            upstream, log_sum = call.rows.take(gradient), call.rows.take(log_whole)
            if settings.detach:
                of, weight = own, _share(call.log_sum(own.log_sum_exp), log_sum)
                upstream = upstream * weight.to(gradient.dtype)
            else:
                of = Partial(call.rows.take(result), log_sum, own)
            shares = call.backward(upstream, of, (query, key, value), guests)
            for into, share in zip(sums, shares if part.guest is None else shares[:1], strict=False):
                call.rows.add(into, share)
            if part.guest is not None:
                of_guests[2 * part.guest : 2 * part.guest + 2] = shares[1:]
            del upstream, of, shares, share  # frees their memory before the next ones are computed
        return *(x[:-1].view(query.shape) for x in sums), None, None, None, *of_guests


def _share(log_sum: Tensor, merged: Tensor) -> Tensor:
    """The share of a part in a whole, from the logarithms of their denominators; zero where both are empty."""
    return (log_sum - merged).exp().nan_to_num(0.0).unsqueeze(-1)
