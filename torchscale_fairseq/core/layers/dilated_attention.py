"""Dilated attention instead of self-attention."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..ops.attention import AttentionMask
from ..ops.backends import attention
from ..ops.dilated import dilated_attention
from ..ops.dilated_pattern import checked_branches
from ..parallel.sequence import SequenceSlice
from .attention import MultiheadAttention, one_dtype
from .attention_inputs import AttentionInputs
from .dilated_cache import DilatedCache


class DilatedAttention(MultiheadAttention):
    """Self-attention over segments of several lengths, each of which keeps every r-th token.

    LongNet, arXiv:2307.02486, sec. 2.2; see ``ops.dilated``.

    Args:
        embed_dim, num_heads, arguments: as for ``MultiheadAttention``.
        segment_lengths: tokens per segment, one entry per branch.
        dilation_ratios: keep every r-th token of a segment, one entry per branch.
        torchscale_compatible: as for ``dilated_attention``.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        segment_lengths: Sequence[int],
        dilation_ratios: Sequence[int],
        torchscale_compatible: bool = False,
        **arguments: Any,
    ):
        super().__init__(embed_dim, num_heads, **arguments)
        self.branches = checked_branches(segment_lengths, dilation_ratios)
        self.torchscale_compatible = torchscale_compatible

    def new_cache(self) -> DilatedCache:
        """An empty cache for the keys and values of this self-attention."""
        return DilatedCache(self.branches, self.num_heads, torchscale_compatible=self.torchscale_compatible)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, inputs: AttentionInputs, cache: Any) -> Tensor:
        assert not inputs.block, "refused by the config"
        if inputs.sequence_slice is not None:
            return self._attend_in_slices(query, key, value, inputs.sequence_slice, causal=inputs.causal)
        if inputs.documents is not None:
            raise InputError(
                "document_starts needs dense attention: segment_length counts from the first token of a row. Give each "
                "document a row of its own."
            )
        if inputs.bias is not None:
            raise ValueError("attn_mask has no place in dilated attention; hide padding with encoder_padding_mask.")
        if cache is not None and not inputs.causal:
            raise ValueError("incremental_state has no place in a bidirectional LongNet; encode the whole sequence.")
        if cache is not None and cache.length > 0:
            return self._continue(query, key, value, inputs.key_padding_mask, cache)
        if cache is not None:
            cache.fill(key, value, inputs.key_padding_mask)
        return self._attention(query, key, value, inputs)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, inputs: AttentionInputs) -> Tensor:
        """A whole sequence."""
        segments, ratios = zip(*self.branches, strict=True)
        return dilated_attention(
            query,
            key,
            value,
            segments,
            ratios,
            causal=inputs.causal,
            key_padding_mask=inputs.key_padding_mask,
            dropout=self.dropout if self.training else 0.0,
            backend=self.backend,
            torchscale_compatible=self.torchscale_compatible,
        )

    def _attend_in_slices(
        self, query: Tensor, key: Tensor, value: Tensor, sequence_slice: SequenceSlice, *, causal: bool
    ) -> Tensor:
        """Attend within sequences that are split over processes."""
        if self.torchscale_compatible:
            raise ValueError("sequence_slice has no torchscale_compatible form; drop one of them.")
        from ..parallel.dilated import dilated_attention_of_slice  # which imports torch._dynamo, in seconds

        segments, ratios = zip(*self.branches, strict=True)
        return dilated_attention_of_slice(
            query,
            key,
            value,
            segments,
            ratios,
            sequence_slice,
            causal=causal,
            dropout=self.dropout if self.training else 0.0,
            backend=self.backend,
        )

    def _continue(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None, cache: DilatedCache
    ) -> Tensor:
        """New tokens of sequences that the cache knows, one after the other."""
        batch, new = query.shape[:2]
        if key_padding_mask is None:
            positions = torch.arange(cache.length, cache.length + new, device=query.device).expand(batch, new)
            real = torch.ones_like(positions, dtype=torch.bool)
        else:
            real = ~key_padding_mask[:, -new:]
            positions = ((~key_padding_mask).cumsum(1)[:, -new:] - 1).clamp_min(0)
        outputs = []
        for i in range(new):
            visible = cache.append(key[:, i], value[:, i], positions[:, i], real[:, i])
            outputs.append(self._attend_to_slots(query[:, i : i + 1], visible, cache))
        return torch.cat(outputs, 1)

    def _attend_to_slots(self, query: Tensor, visible: Tensor, cache: DilatedCache) -> Tensor:
        """(batch, 1, heads, head_dim) to what is visible of the cache; zero where nothing is."""
        query, key, value = one_dtype(query, *cache.content())
        blind = ~visible.any(-1, keepdim=True)
        bias = torch.zeros_like(visible, dtype=key.dtype).masked_fill(~(visible | blind), float("-inf"))
        mask = AttentionMask(bias=bias.unsqueeze(2))
        output, _ = attention(query, key, value, mask=mask, backend="naive" if self.backend == "naive" else "sdpa")
        return output.masked_fill(blind.unsqueeze(1), 0.0)

    def extra_repr(self) -> str:
        segments, ratios = zip(*self.branches, strict=True)
        return f"{super().extra_repr()}, segment_lengths={list(segments)}, dilation_ratios={list(ratios)}"
