"""Softmax attention, written out.

"Attention Is All You Need", arXiv:1706.03762, eq. 1, with what the architectures add to it: a bias on the
scores, hidden keys, and the log-sum-exp by which partial results can be merged.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .documents import Documents

AttentionResult = tuple[Tensor, Tensor | None]
"""Output and log-sum-exp, if the backend has it, as ``ops.backends.attention`` returns them."""


@dataclass(frozen=True)
class AttentionMask:
    """Which keys a query may see, and what is added to its scores. By default a query sees all keys."""

    causal: bool = False
    """A query sees keys up to its own position; the queries are the last of the keys' sequence."""
    block: int = 0
    """With causal, a query sees only its own block of this many tokens and the one before, counted from a row's first
    real token (blockwise causal attention, arXiv:2212.10554, sec. 3.2); 0 for all."""
    key_padding_mask: Tensor | None = None
    """(batch, key_length), True for keys that nothing may see."""
    bias: Tensor | None = None
    """Added to the scaled scores; broadcastable to (batch, heads, query_length, key_length)."""
    documents: Documents | None = None
    """A query sees keys of its own document alone. Then there is no key_padding_mask, and the bias is for documents,
    (1, heads or 1, n, n), n at least the longest document's tokens."""
    key_documents: Documents | None = None
    """With documents, those of the keys, as many: a query sees all keys of the document of its own number. None: keys
    and queries are those of one sequence."""

    def visible(self, query_length: int, key_length: int, device: torch.device) -> Tensor | None:
        """Bool, broadcastable to (batch, heads, query_length, key_length), or None where all queries see all keys."""
        padding, visible = self.key_padding_mask, None
        if self.causal and query_length > 1:
            seen = torch.ones(query_length, key_length, dtype=torch.bool, device=device)
            visible = seen.tril(key_length - query_length)[None, None]
        if self.block:
            blocks = _positions(key_length, padding, device) // self.block
            near = blocks[:, -query_length:, None] - blocks[:, None, :] <= 1
            visible = near[:, None] if visible is None else visible & near[:, None]
        if padding is not None:
            real = ~padding[:, None, None, :]
            visible = real if visible is None else visible & real
        return visible


EVERYTHING = AttentionMask()


def _positions(length: int, padding_mask: Tensor | None, device: torch.device) -> Tensor:
    """(batch or 1, length): real tokens counted from 0."""
    if padding_mask is None:
        return torch.arange(length, device=device)[None]
    return (~padding_mask).cumsum(1) - 1


@dataclass(frozen=True)
class AttentionRequest:
    """A request to ``ops.backends.attention``; arguments as there."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: AttentionMask
    scale: float
    dropout: float = 0.0
    need_log_sum_exp: bool = False

    def visible(self) -> Tensor | None:
        """Which keys a query may see, as ``AttentionMask.visible`` returns it."""
        return self.mask.visible(self.query.size(1), self.key.size(1), self.query.device)


def naive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    visible: Tensor | None,
    bias: Tensor | None,
    scale: float,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """The definition, in float32 or, for float64 inputs, float64.

    Args:
        query: (batch, query_length, heads, head_dim).
        key, value: (batch, key_length, heads, head_dim).
        visible: as ``AttentionMask.visible`` returns it.
        bias: added to the scaled scores; broadcastable to (batch, heads, query_length, key_length).
        scale: factor on the scores.
        dropout: probability to drop a weight.

    Returns:
        Output shaped like query, zero where a query sees no key; and the log-sum-exp of the scores,
        (batch, heads, query_length), -inf there.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = torch.einsum("bqhd,bkhd->bhqk", query.to(wide) * scale, key.to(wide))
    if bias is not None:
        scores = scores + bias.to(wide)
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    highest = scores.detach().amax(-1, keepdim=True)
    highest = highest.masked_fill(highest == float("-inf"), 0.0)
    weights = torch.exp(scores - highest)
    total = weights.sum(-1, keepdim=True)
    sees_any = total > 0
    total = total.masked_fill(~sees_any, 1.0)
    log_sum_exp = (total.log() + highest).masked_fill(~sees_any, float("-inf")).squeeze(-1)
    weights = torch.dropout(weights / total, dropout, train=dropout > 0)
    return torch.einsum("bhqk,bkhd->bqhd", weights, value.to(wide)).to(query.dtype), log_sum_exp
