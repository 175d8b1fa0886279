"""The pattern of dilated attention, and its definition.

LongNet, arXiv:2307.02486, sec. 2.2. Branch k cuts a sequence into segments of w tokens, counted from its first real
token, and in each keeps, for head j, the tokens at offset j mod r, j mod r + r, ... Kept queries attend to kept keys of
their segment. The branches' outputs are averaged with the denominators of their softmax as weights (eq. 9-10), which
makes the whole one softmax in which a key counts as often as branches show it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import naive_attention


class Branch(NamedTuple):
    """One pattern."""

    segment_length: int
    ratio: int


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


def head_offsets(heads: int, ratio: int, device: torch.device, *, contiguous: bool = False) -> Tensor:
    """(heads,), offset that each head keeps; ``contiguous`` groups of heads share one in TorchScale's code."""
    head = torch.arange(heads, device=device)
    return head // -(-heads // ratio) if contiguous else head % ratio


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
        shown = shown + shown_keys(query, branch, key_padding_mask)
    visible = shown > 0
    if causal:
        visible = visible & torch.ones(query.size(1), query.size(1), dtype=torch.bool, device=query.device).tril()
    bias = shown.clamp(min=1).to(torch.promote_types(query.dtype, torch.float32)).log()
    scale = query.size(-1) ** -0.5 if scale is None else scale
    output, _ = naive_attention(query, key, value, visible=visible, bias=bias, scale=scale, dropout=0.0)
    return output


def shown_keys(query: Tensor, branch: Branch, key_padding_mask: Tensor | None) -> Tensor:
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
