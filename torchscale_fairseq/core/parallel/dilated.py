"""Dilated attention over sequences that are split over several processes.

LongNet, arXiv:2307.02486, sec. 3.1. Queries stay where they are. Of a segment that lies within one slice all is there
already; of a longer one a process gets the other slices' keys and values, after the branch has thrown out those that
it does not keep. What a process gets attends and is differentiated like one more branch, and the gradients of keys and
values go back to where they came from. All branches share one all-to-all, forward and backward.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from ..ops.dilated_layout import Layout
from ..ops.dilated_parts import Part, Settings, mix
from ..ops.dilated_pattern import Branch, checked_branches, head_offsets
from .exchange import exchange
from .sequence import SequenceSlice


@torch.compiler.disable  # type: ignore[untyped-decorator]
def dilated_attention_of_slice(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_lengths: Sequence[int],
    dilation_ratios: Sequence[int],
    sequence_slice: SequenceSlice,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str = "sdpa",
) -> Tensor:
    """``dilated_attention`` of whole sequences, of which each process has and gets its slice. All processes of the
    group call it together, forward and backward.

    Args:
        query, key, value: (batch, sequence_slice.length, heads, head_dim).
        segment_lengths, dilation_ratios: as for ``dilated_attention``, in tokens of the whole sequence.
        sequence_slice: which slice it is, and where rows end.
        causal: a query sees keys up to its own position.
        scale, dropout, backend: as for ``dilated_attention``.

    Returns:
        (batch, sequence_slice.length, heads, head_dim); zero at padding, and for a head where no branch keeps a token.

    Raises:
        ValueError: the lists do not fit each other, an entry is below 1, the slice has another length, or the backend
            cannot serve the request.
    """
    branches = checked_branches(segment_lengths, dilation_ratios)
    if query.size(1) != sequence_slice.length:
        raise ValueError(f"query has {query.size(1)} tokens, but each process's slice has {sequence_slice.length}.")
    scale = query.size(-1) ** -0.5 if scale is None else scale
    plan = _Plan(branches, sequence_slice, query.size(0), query.size(2), query.device, causal=causal)
    remotes: tuple[Tensor, ...] = ()
    if any(plan.shared):
        key, value, *remotes = _Gathered.apply(key, value, plan)  # type: ignore[no-untyped-call]
    settings = Settings(scale, dropout, backend)
    return mix(query, key, value, plan.parts(), remotes, real=sequence_slice.real(), settings=settings)


class _Shared(NamedTuple):
    """Queries of one process and keys of others that lie in the same segment; tokens of the whole sequence."""

    branch: Branch
    segment: int
    """Where it begins."""
    queries: range
    keys: range


class _Plan:
    """Who needs what of whom; every process knows it of all."""

    def __init__(
        self,
        branches: list[Branch],
        sequence_slice: SequenceSlice,
        batch: int,
        heads: int,
        device: torch.device,
        *,
        causal: bool,
    ):
        self._branches, self.sequence_slice, self._batch, self._causal = branches, sequence_slice, batch, causal
        self.rank, self.ranks = sequence_slice.rank, range(sequence_slice.size)
        self._offsets = {branch: head_offsets(heads, branch.ratio, device) for branch in branches}
        self.shared = [[s for branch in branches for s in self._shared(branch, rank)] for rank in self.ranks]
        """One entry per process."""

    def parts(self) -> list[Part]:
        """The calls that this process computes; remote keys are counted as in ``shared``."""
        parts = [part for branch in self._branches for part in self._own_parts(branch)]
        start = self._slice(self.rank).start
        for remote, shared in enumerate(self.shared[self.rank]):
            tokens = slice(shared.queries.start - start, shared.queries.stop - start)
            layout = self.kept(shared, shared.queries)
            parts.append(Part(tokens, layout, causal=False, remote=remote, hidden=self._absent(shared)))
        return parts

    def travels(self, source: int, destination: int) -> list[tuple[int, Layout]]:
        """The stretches of its slice that one process sends to another, by their first token and the tokens kept of
        them."""
        own, result = self._slice(source), []
        for shared in self.shared[destination]:
            tokens = _overlap(own, shared.keys)
            if tokens:
                layout = self.kept(shared, tokens)
                result.append((tokens.start - own.start, layout))
        return result

    def sources(self, shared: _Shared) -> list[tuple[int, range]]:
        """Processes that have keys of a segment, and which."""
        overlaps = ((rank, _overlap(self._slice(rank), shared.keys)) for rank in self.ranks)
        return [(rank, tokens) for rank, tokens in overlaps if tokens]

    def _slice(self, rank: int) -> range:
        return range(rank * self.sequence_slice.length, (rank + 1) * self.sequence_slice.length)

    def _shared(self, branch: Branch, rank: int) -> list[_Shared]:
        """The segments that begin before a slice or end after it."""
        own, length = self._slice(rank), branch.segment_length
        first, last = own.start // length * length, (own.stop - 1) // length * length
        found = []
        if first < own.start:
            queries = range(own.start, min(first + length, own.stop))
            found.append(_Shared(branch, first, queries, range(first, own.start)))
        end = min(last + length, self.sequence_slice.total)
        if end > own.stop and not self._causal:
            queries = range(max(last, own.start), own.stop)
            found.append(_Shared(branch, last, queries, range(own.stop, end)))
        return found

    def _own_parts(self, branch: Branch) -> list[Part]:
        """The end of a segment that began before, and the segments that begin here."""
        own, length = self._slice(self.rank), branch.segment_length
        first = own.start // length * length
        begins = own.start if first == own.start else min(first + length, own.stop)
        pieces = []
        if begins > own.start:
            layout = self._kept(branch, first, range(own.start, begins))
            pieces.append(Part(slice(0, begins - own.start), layout, self._causal))
        if begins < own.stop:
            layout = Layout(branch, self._offsets[branch], self._batch, own.stop - begins)
            pieces.append(Part(slice(begins - own.start, self.sequence_slice.length), layout, self._causal))
        return pieces

    def kept(self, shared: _Shared, tokens: range) -> Layout:
        """How neighbouring tokens of a segment are kept."""
        return self._kept(shared.branch, shared.segment, tokens)

    def _kept(self, branch: Branch, segment: int, tokens: range) -> Layout:
        offsets = (self._offsets[branch] - (tokens.start - segment)) % branch.ratio
        return Layout(Branch(len(tokens), branch.ratio), offsets, self._batch, len(tokens))

    def _absent(self, shared: _Shared) -> Tensor | None:
        """(batch or 1, heads, keys), True for keys that fill up a process's part, or are padding; None for none.
        Causal queries that are real see no padding."""
        lengths = None if self._causal else self.sequence_slice.lengths
        ratio, sources = shared.branch.ratio, self.sources(shared)
        if lengths is None and not any(len(tokens) % ratio for _, tokens in sources):
            return None
        absent = []
        for _, tokens in sources:
            layout = self.kept(shared, tokens)
            steps = torch.arange(layout.kept, device=layout.offsets.device) * ratio
            position = tokens.start + layout.offsets[:, None] + steps
            ends = position >= tokens.stop
            absent.append(ends[None] if lengths is None else ends | (position >= lengths[:, None, None]))
        return torch.cat(absent, -1)


def _overlap(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


class _Gathered(torch.autograd.Function):
    """Keys and values as they are, so that all processes pass through here on the way back, and of each segment that
    is shared the keys and values that others keep of it, (batch, heads, keys, head_dim)."""

    @staticmethod
    def forward(ctx: Any, key: Tensor, value: Tensor, plan: _Plan) -> tuple[Tensor, ...]:
        ctx.plan = plan
        outgoing = [
            [
                layout.rows(start, key.size(1)).take(x)
                for start, layout in plan.travels(plan.rank, rank)
                for x in (key, value)
            ]
            for rank in plan.ranks
        ]
        expected = [plan.travels(rank, plan.rank) for rank in plan.ranks]
        arrived = _trade(outgoing, expected, key, plan.sequence_slice.group)
        remotes = []
        for shared in plan.shared[plan.rank]:
            sources = [rank for rank, _ in plan.sources(shared)]
            remotes += [torch.cat([arrived[rank].pop(0) for rank in sources], 2) for _ in range(2)]
        return key.view_as(key), value.view_as(value), *remotes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_key: Tensor, of_value: Tensor, *of_remotes: Tensor) -> tuple[Any, ...]:
        plan = ctx.plan
        outgoing: list[list[Tensor]] = [[] for _ in plan.ranks]
        for index, shared in enumerate(plan.shared[plan.rank]):
            sources = plan.sources(shared)
            kept = [plan.kept(shared, tokens).kept for _, tokens in sources]
            for gradient in of_remotes[2 * index : 2 * index + 2]:
                for (rank, _), chunk in zip(sources, gradient.split(kept, 2), strict=True):
                    outgoing[rank].append(chunk)
        expected = [plan.travels(plan.rank, rank) for rank in plan.ranks]
        arrived = _trade(outgoing, expected, of_key, plan.sequence_slice.group)
        sums = [F.pad(x.flatten(0, 2), (0, 0, 0, 1)) for x in (of_key, of_value)]  # see Rows
        for travels, chunks in zip(expected, arrived, strict=True):
            for start, layout in travels:
                for into in sums:
                    layout.rows(start, of_key.size(1)).add(into, chunks.pop(0))
        return *(x[:-1].view(of_key.shape) for x in sums), None


def _trade(
    outgoing: list[list[Tensor]], expected: list[list[tuple[int, Layout]]], like: Tensor, group: ProcessGroup
) -> list[list[Tensor]]:
    """Tensors for each process against tensors from each: two, of keys and of values, for each entry of ``expected``.
    All are (batch, heads, keys, head_dim); ``like`` is (batch, seq, heads, head_dim)."""
    shape = (like.size(0), like.size(2), -1, like.size(3))
    per_key = like.size(0) * like.size(2) * like.size(3)
    sizes = [[layout.kept * per_key for _, layout in travels for _ in range(2)] for travels in expected]
    rows = torch.cat([like.new_empty(0), *(x.flatten() for chunks in outgoing for x in chunks)])
    arrived = exchange(rows, [sum(x.numel() for x in chunks) for chunks in outgoing], [sum(s) for s in sizes], group)
    chunks = iter(arrived.split([size for of_one in sizes for size in of_one]))
    return [[next(chunks).view(shape) for _ in of_one] for of_one in sizes]
