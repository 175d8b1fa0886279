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
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .attention import naive_attention


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
    torchscale_compatible: bool = False,
) -> Tensor:
    """Dilated attention in memory and, with segments of bounded length over ratio, time linear in the sequence.

    On a CPU each branch is one call of torch's fused kernel over its kept tokens, forward and backward. On other
    devices, and with torchscale_compatible, a branch's scores are written out.

    Args:
        query, key, value: (batch, seq, heads, head_dim).
        segment_lengths: tokens per segment, one entry per branch; longer than the sequence means all of it.
        dilation_ratios: keep every r-th token of a segment, one entry per branch.
        causal: a query sees keys up to its own position.
        key_padding_mask: (batch, seq), True for padding, left or right of a row's tokens. Nothing sees it, and the
            segments of a row begin at its first real token.
        scale: factor on the scores; head_dim ** -0.5 by default.
        torchscale_compatible: heads keep offsets in contiguous groups, and the weights of branches carry no gradient.

    Returns:
        (batch, seq, heads, head_dim); zero at padding, and for a head where no branch keeps a token.

    Raises:
        ValueError: the lists do not fit each other, an entry is below 1, or there is padding between real tokens.
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
    output = mix(query, key, value, parts, real=real, scale=scale, detach=torchscale_compatible)
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
    if key_padding_mask is None or not key_padding_mask.any():
        return None, None
    real = ~key_padding_mask
    starts, counts = real.to(torch.uint8).argmax(1), real.sum(1)
    aligned = torch.arange(query.size(1), device=query.device)[None] < counts[:, None]
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


class Layout:
    """How a branch's kept tokens lie in a sequence: from (batch, seq, heads, ...) to (batch * segments, heads, kept,
    ...), and back."""

    def __init__(self, branch: Branch, offsets: Tensor, batch: int, length: int):
        self.batch, self.length = batch, length
        self.segment = min(branch.segment_length, length)
        self.ratio = min(branch.ratio, self.segment)
        self.offsets = offsets
        self.segments = -(-length // self.segment)
        self.kept = -(-self.segment // branch.ratio)
        self.stride = branch.ratio

    def take(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """The kept tokens; ``fill`` where a segment or the sequence ends early."""
        rest = [0] * (2 * (x.dim() - 2))
        x = F.pad(x, [*rest, 0, self.segments * self.segment - self.length], value=fill)
        x = x.unflatten(1, (self.segments, self.segment))
        x = F.pad(x, [*rest, 0, self.kept * self.stride - self.segment], value=fill)
        x = x.unflatten(2, (self.kept, self.stride)).movedim(3, 4)  # batch, segments, kept, heads, stride, ...
        heads = torch.arange(x.size(3), device=x.device)
        return x[:, :, :, heads, self.offsets].movedim(3, 2).flatten(0, 1)

    def put(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """The inverse of take, with ``fill`` at tokens that are not kept."""
        x = x.unflatten(0, (self.batch, self.segments)).movedim(2, 3)  # batch, segments, kept, heads, ...
        whole = x.new_full((*x.shape[:4], self.stride, *x.shape[4:]), fill)
        whole[:, :, :, torch.arange(x.size(3), device=x.device), self.offsets] = x
        whole = whole.movedim(4, 3).flatten(2, 3)[:, :, : self.segment]
        return whole.flatten(1, 2)[:, : self.length]

    def real(self, real: Tensor | None, heads: int) -> Tensor:
        """(batch * segments, heads, kept), True at real tokens."""
        if real is None:
            real = torch.ones(self.batch, self.length, dtype=torch.bool, device=self.offsets.device)
        return self.take(real[:, :, None].expand(-1, -1, heads).float()) > 0


def _hidden(layout: Layout, real: Tensor | None, heads: int, causal: bool) -> Tensor | None:
    """(batch * segments, heads, 1, kept), True for keys that queries must be kept from seeing; None if order does
    that. A segment without any real token hides nothing: what it computes is not used."""
    whole = layout.segments * layout.segment == layout.length and layout.kept * layout.stride == layout.segment
    if causal or (real is None and whole):
        return None
    there = layout.real(real, heads)
    return (~there & there.any(-1, keepdim=True)).unsqueeze(2)


class Part(NamedTuple):
    """What one call of a kernel computes: kept queries of a stretch of the sequence attend to kept keys."""

    tokens: slice
    """The stretch."""
    layout: Layout
    """Of the stretch."""
    causal: bool
    guest: int | None = None
    """Which keys and values from outside the queries see, all of them; None for those of the stretch itself."""
    hidden: Tensor | None = None
    """(batch or 1, heads, keys), True for keys from outside that do not exist."""

    def operands(self, query: Tensor, key: Tensor, value: Tensor, guests: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Queries, keys and values of the kernel, (batch * segments, heads, kept, head_dim)."""
        own = (self.layout.take(x[:, self.tokens]) for x in (query, key, value))
        if self.guest is None:
            return tuple(own)
        return next(own), guests[2 * self.guest], guests[2 * self.guest + 1]

    def hides(self, real: Tensor | None) -> Tensor | None:
        """(batch * segments or 1, heads, 1, keys), True for keys that queries must be kept from seeing. Where that
        would be all of them, none: what is computed there is not used."""
        if self.guest is None:
            return _hidden(self.layout, self._own(real), self.layout.offsets.numel(), self.causal)
        if self.hidden is None:
            return None
        return (self.hidden & ~self.hidden.all(-1, keepdim=True)).unsqueeze(2)

    def sees(self, real: Tensor | None) -> Tensor:
        """(batch * segments, heads, kept), True for queries that exist and see something."""
        seeing = self.layout.real(self._own(real), self.layout.offsets.numel())
        return seeing if self.hidden is None else seeing & ~self.hidden.all(-1, keepdim=True)

    def _own(self, real: Tensor | None) -> Tensor | None:
        return None if real is None else real[:, self.tokens]


def mix(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: list[Part],
    guests: Sequence[Tensor] = (),
    *,
    real: Tensor | None,
    scale: float,
    detach: bool = False,
) -> Tensor:
    """All parts in one softmax.

    Args:
        query, key, value: (batch, seq, heads, head_dim).
        guests: keys and values from outside in turn, (batch, heads, keys, head_dim) each, as the parts count them.
        real: (batch, seq), True for tokens; None for all.
        scale: factor on the scores.
        detach: parts are branches, whose weights carry no gradient.

    Returns:
        Shaped like query; zero at padding and where no part has the query.
    """
    if detach or query.device.type != "cpu":
        output = _mix_written_out(query, key, value, parts, guests, real, scale, detach=detach)
    else:
        output = _Fused.apply(query, key, value, parts, real, scale, *guests)  # type: ignore[no-untyped-call]
    return output if real is None else output.masked_fill(~real[:, :, None, None], 0.0)


def _mix_written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: list[Part],
    guests: Sequence[Tensor],
    real: Tensor | None,
    scale: float,
    *,
    detach: bool,
) -> Tensor:
    """The parts one by one with written-out scores, and their average; ``detach`` keeps gradients from its weights."""
    outputs, log_sums = [], []
    for part in parts:
        q, k, v = (x.transpose(1, 2) for x in part.operands(query, key, value, guests))
        hidden = part.hides(real)
        visible = None if hidden is None else ~hidden
        if part.causal:
            kept = part.layout.kept
            visible = torch.ones(kept, kept, dtype=torch.bool, device=query.device).tril()[None, None]
        output, log_sum = naive_attention(q, k, v, visible=visible, bias=None, scale=scale, dropout=0.0)
        log_sum = part.layout.put(log_sum.masked_fill(~part.sees(real), float("-inf")), float("-inf"))
        outputs.append(_at(part.tokens, part.layout.put(output.transpose(1, 2)), query.size(1), 0.0))
        log_sums.append(_at(part.tokens, log_sum, query.size(1), float("-inf")))
    log_sum = torch.stack(log_sums)
    if detach:
        log_sum = log_sum.detach()
    weights = torch.softmax(log_sum, 0).nan_to_num(0.0)
    return (torch.stack(outputs) * weights.unsqueeze(-1).to(query.dtype)).sum(0)


def _at(tokens: slice, x: Tensor, length: int, fill: float) -> Tensor:
    """(batch, stretch, ...) in its place in (batch, length, ...)."""
    before, stop, _ = tokens.indices(length)
    return F.pad(x, [*([0] * (2 * (x.dim() - 2))), before, length - stop], value=fill)


class _Fused(torch.autograd.Function):
    """The same by torch's fused kernel for CPUs.

    Forward keeps, for each query, the average so far and the logarithm of its denominator. With the final ones, the
    kernel's backward pass gives each part's share of the gradient of the one softmax that the average is.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        parts: list[Part],
        real: Tensor | None,
        scale: float,
        *guests: Tensor,
    ) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        whole = torch.zeros_like(query, dtype=wide)
        log_whole = query.new_full(query.shape[:3], float("-inf"), dtype=wide)
        for part in parts:
            operands = part.operands(query, key, value, guests)
            output, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *operands, 0.0, part.causal, attn_mask=_additive(part.hides(real), query.dtype), scale=scale
            )
            total, log_total = whole[:, part.tokens], log_whole[:, part.tokens]
            log_sum = part.layout.put(log_sum.masked_fill(~part.sees(real), float("-inf")), float("-inf"))
            merged = torch.logaddexp(log_total, log_sum)
            total *= _share(log_total, merged)
            total += part.layout.put(output).to(wide) * _share(log_sum, merged)
            log_total.copy_(merged)
        result = whole.to(query.dtype)
        ctx.save_for_backward(query, key, value, result, log_whole, real, *guests)
        ctx.parts, ctx.scale = parts, scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        query, key, value, result, log_whole, real, *guests = ctx.saved_tensors
        if real is not None:
            gradient = gradient.masked_fill(~real[:, :, None, None], 0.0)
            log_whole = log_whole.masked_fill(~real[:, :, None], float("inf"))  # so that nothing flows to padding
        sums = [torch.zeros_like(x) for x in (query, key, value)]
        of_guests: list[Tensor | None] = [None] * len(guests)
        for part in ctx.parts:
            layout, tokens = part.layout, part.tokens
            log_total = layout.take(log_whole[:, tokens], float("inf"))
            if part.hidden is not None:
                log_total = log_total.masked_fill(~part.sees(real), float("inf"))
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                layout.take(gradient[:, tokens]),
                *part.operands(query, key, value, guests),
                layout.take(result[:, tokens]),
                log_total.contiguous(),
                0.0,
                part.causal,
                attn_mask=_additive(part.hides(real), query.dtype),
                scale=ctx.scale,
            )
            own = parts if part.guest is None else parts[:1]
            for into, share in zip(sums, own, strict=False):
                into[:, tokens] += layout.put(share)
            if part.guest is not None:
                of_guests[2 * part.guest : 2 * part.guest + 2] = parts[1:]
        return *sums, None, None, None, *of_guests


def _share(log_sum: Tensor, merged: Tensor) -> Tensor:
    """Of a part in a whole, given the logarithms of their denominators; zero where there is neither."""
    return (log_sum - merged).exp().nan_to_num(0.0).unsqueeze(-1)


def _additive(hidden: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if hidden is None else torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, float("-inf"))
