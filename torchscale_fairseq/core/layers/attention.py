"""Multi-head attention."""

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.backends import attention
from ..ops.xpos import XPosTables, rotate
from ..parallel.sequence import SequenceSlice
from .cache import KeyValueCache
from .linear import LinearFactory, dense
from .multiway import apply, single_or_multiway


class MultiheadAttention(nn.Module):
    """Self-attention, or attention to an encoder's output.

    "Attention Is All You Need", arXiv:1706.03762, sec. 3.2.2; the norm before the output projection is
    SubLN's (Magneto, arXiv:2210.06423, sec. 2.1).

    Args:
        embed_dim: width of queries and output.
        num_heads: heads; divides embed_dim.
        memory_dim: width of the encoder's output; None for self-attention.
        dropout: of attention weights.
        inner_norm: norm over embed_dim before the output projection (may be multiway), or None.
        backend: name of the attention backend.
        multiway: whether all projections are doubled.
        linear: makes the projections.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        memory_dim: int | None = None,
        dropout: float = 0.0,
        inner_norm: nn.Module | None = None,
        backend: str = "sdpa",
        multiway: bool = False,
        linear: LinearFactory = dense,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.backend = backend
        key_dim = embed_dim if memory_dim is None else memory_dim
        self.k_proj = single_or_multiway(multiway, lambda: linear(key_dim, embed_dim))
        self.v_proj = single_or_multiway(multiway, lambda: linear(key_dim, embed_dim))
        self.q_proj = single_or_multiway(multiway, lambda: linear(embed_dim, embed_dim))
        self.out_proj = single_or_multiway(multiway, lambda: linear(embed_dim, embed_dim))
        self.inner_attn_ln = inner_norm
        self.register_load_state_dict_pre_hook(_drop_official_xpos_buffer)  # type: ignore[no-untyped-call]

    def forward(
        self,
        query: Tensor,
        memory: Tensor | None = None,
        *,
        causal: bool = False,
        block: int = 0,
        key_padding_mask: Tensor | None = None,
        bias: Tensor | None = None,
        xpos: XPosTables | None = None,
        cache: Any = None,
        split_position: int | None = None,
        sequence: SequenceSlice | None = None,
    ) -> Tensor:
        """Attend to the sequence itself or to the memory.

        Args:
            query: (batch, seq, embed_dim).
            memory: (groups, memory_seq, memory_dim), the encoder's output; batch / groups neighbouring rows
                (the beams of a sentence) share one of its rows.
            causal: a query sees keys up to its own position.
            block: and of these its own block of this many tokens and the one before; 0 for all.
            key_padding_mask: (batch or groups, keys), True for padding; of cached and new keys.
            bias: added to scores; broadcastable to (batch, heads, seq, keys).
            xpos: tables that rotate queries and new keys.
            cache: what ``new_cache`` made: keys and values of earlier tokens, extended by the new ones; for a memory,
                a KeyValueCache, and they are computed once.
            split_position: tokens of the first modality.
            sequence: the queries are this slice of longer rows; it knows their padding.

        Returns:
            (batch, seq, embed_dim).
        """
        q = self._heads(apply(self.q_proj, query, split_position))
        if memory is None:
            k, v = self._keys_and_values(query, split_position)
            if xpos is not None:
                dtype = torch.float32 if xpos.wide else q.dtype
                q, k, v = rotate(q, xpos.query).to(dtype), rotate(k, xpos.key).to(dtype), v.to(dtype)
            if sequence is not None:
                output = self._attend_in_slices(q, k, v, sequence, causal=causal)
            else:
                output = self._attend(
                    q, k, v, causal=causal, block=block, key_padding_mask=key_padding_mask, bias=bias, cache=cache
                )
        else:
            if cache is None:
                k, v = self._keys_and_values(memory, split_position)
            else:
                k, v = cache.content() if cache.length else cache.append(*self._keys_and_values(memory, split_position))
            output = self._attend_to_memory(q, k, v, key_padding_mask=key_padding_mask, bias=bias)
        output = output.reshape(query.shape).to(query.dtype)
        if self.inner_attn_ln is not None:
            output = apply(self.inner_attn_ln, output, split_position)
        return apply(self.out_proj, output, split_position)

    def new_cache(self) -> Any:
        """What this self-attention keeps of the tokens seen so far."""
        return KeyValueCache()

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        causal: bool,
        block: int,
        key_padding_mask: Tensor | None,
        bias: Tensor | None,
        cache: Any,
    ) -> Tensor:
        """Self-attention of (batch, seq, heads, head_dim) to itself and to what the cache holds."""
        if cache is not None:
            key, value = cache.append(key, value)
            query, key, value = one_dtype(query, key, value)
        output, _ = attention(
            query,
            key,
            value,
            causal=causal,
            block=block,
            key_padding_mask=key_padding_mask,
            bias=bias,
            dropout=self.dropout if self.training else 0.0,
            backend=self.backend,
        )
        return output

    def _attend_in_slices(
        self, query: Tensor, key: Tensor, value: Tensor, sequence: SequenceSlice, *, causal: bool
    ) -> Tensor:
        """Self-attention of sequences that processes share out."""
        raise ValueError("sequence_slice needs dilated attention: give segment_length and dilated_ratio.")

    def _attend_to_memory(
        self, query: Tensor, key: Tensor, value: Tensor, *, key_padding_mask: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        beams = query.size(0) // key.size(0)
        if beams > 1:
            query = query.reshape(key.size(0), -1, *query.shape[2:])
            bias = None if bias is None else bias.repeat(1, 1, beams, 1)
        return self._attend(
            query, key, value, causal=False, block=0, key_padding_mask=key_padding_mask, bias=bias, cache=None
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def _keys_and_values(self, source: Tensor, split_position: int | None) -> tuple[Tensor, Tensor]:
        return (
            self._heads(apply(self.k_proj, source, split_position)),
            self._heads(apply(self.v_proj, source, split_position)),
        )

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, dropout={self.dropout}, backend={self.backend}"


def one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A cache keeps the dtype of its first keys, which xPos widens for long prompts in float16."""
    dtype = torch.promote_types(query.dtype, key.dtype)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _drop_official_xpos_buffer(_: nn.Module, state_dict: dict[str, Tensor], prefix: str, *__: object) -> None:
    """TorchScale stores xPos's constants; ours are computed from the config."""
    state_dict.pop(f"{prefix}xpos.scale", None)
