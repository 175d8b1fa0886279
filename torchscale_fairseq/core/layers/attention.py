"""Multi-head attention."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.backends import attention
from ..ops.xpos import XPosTables, rotate
from .attention_inputs import FULL_ATTENTION, AttentionInputs
from .bit_linear import at_once
from .cache import KeyValueCache
from .hooked import is_plain_linear
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

    def forward(self, x: Tensor, inputs: AttentionInputs = FULL_ATTENTION, cache: Any = None) -> Tensor:
        """Attend to the sequence itself or to the memory.

        Args:
            x: (batch, seq, embed_dim), the tokens that queries are made from.
            inputs: the rest, which layers share.
            cache: what ``new_cache`` made: keys and values of earlier tokens, extended by the new ones; for a memory,
                a KeyValueCache, and they are computed once.

        Returns:
            (batch, seq, embed_dim).
        """
        split = inputs.split_position
        if inputs.memory is None:
            query, key, value = self._of_itself(x, split)
            output = self._attend(*_rotated(query, key, value, inputs.xpos), inputs, cache)
        else:
            query = self._heads(apply(self.q_proj, x, split))
            key, value = self._of_memory(inputs.memory, split, cache)
            output = self._attend_to_memory(query, key, value, inputs)
        output = output.reshape(x.shape).to(x.dtype)
        if self.inner_attn_ln is not None:
            output = apply(self.inner_attn_ln, output, split)
        return apply(self.out_proj, output, split)

    def received(self, x: Tensor, weight: Tensor, inputs: AttentionInputs = FULL_ATTENTION) -> Tensor:
        """Attention that each token of a sequence receives from weighted queries, averaged over the heads.

        The gradient of the weighted sum of outputs by the values, so that no attention matrix is kept.

        Args:
            x: (batch, seq, embed_dim), as for ``forward``, without a memory.
            weight: (batch, seq), weights of the queries.
            inputs: as for ``forward``.

        Returns:
            (batch, seq).
        """
        query, key, value = _rotated(*self._of_itself(x.detach(), inputs.split_position), inputs.xpos)
        with torch.enable_grad():
            value = torch.zeros_like(value).requires_grad_()
            output = self._attend(query.detach(), key.detach(), value, inputs, None)
            upstream = torch.zeros_like(output)
            upstream[..., 0] = weight[:, :, None]
            (gradient,) = torch.autograd.grad(output, value, upstream)
        return gradient[..., 0].mean(2)

    def new_cache(self) -> Any:
        """An empty cache for the keys and values of this self-attention."""
        return KeyValueCache()

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, inputs: AttentionInputs, cache: Any) -> Tensor:
        """Self-attention of (batch, seq, heads, head_dim) to itself and to what the cache holds."""
        if inputs.sequence_slice is not None:
            raise ValueError("sequence_slice needs dilated attention: give segment_length and dilated_ratio.")
        if cache is not None:
            query, key, value = one_dtype(query, *cache.append(key, value))
        return self._attention(query, key, value, inputs)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, inputs: AttentionInputs) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        output, _ = attention(query, key, value, mask=inputs, dropout=dropout, backend=self.backend)
        return output

    def _attend_to_memory(self, query: Tensor, key: Tensor, value: Tensor, inputs: AttentionInputs) -> Tensor:
        beams = query.size(0) // key.size(0)
        if beams > 1:
            query = query.reshape(key.size(0), -1, *query.shape[2:])
            if inputs.bias is not None and inputs.bias.size(2) > 1:
                inputs = replace(inputs, bias=inputs.bias.repeat(1, 1, beams, 1))
        return self._attention(query, key, value, inputs)

    def _of_itself(self, x: Tensor, split_position: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a sequence.

        Code compiled for a GPU computes one product instead of three; packed weights take one launch.
        """
        joins = x.is_cuda and torch.compiler.is_compiling()
        projections = (self.q_proj, self.k_proj, self.v_proj) if joins else ()
        parts = [p for p in projections if is_plain_linear(p) and p.bias is not None]
        if len(parts) == 3:
            weight, bias = torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])
            query, key, value = map(self._heads, F.linear(x, weight, bias).chunk(3, -1))
            return query, key, value
        together = at_once(x, self.q_proj, self.k_proj, self.v_proj)
        if together is not None:
            return self._heads(together[0]), self._heads(together[1]), self._heads(together[2])
        return self._heads(apply(self.q_proj, x, split_position)), *self.keys_and_values(x, split_position)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def keys_and_values(self, source: Tensor, split_position: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of a sequence or a memory (batch, seq, width), each (batch, seq, heads, head_dim)."""
        return (
            self._heads(apply(self.k_proj, source, split_position)),
            self._heads(apply(self.v_proj, source, split_position)),
        )

    def _of_memory(self, memory: Tensor, split_position: int | None, cache: Any) -> tuple[Tensor, Tensor]:
        if cache is None:
            return self.keys_and_values(memory, split_position)
        if cache.length:
            kept: tuple[Tensor, Tensor] = cache.content()
            return kept
        added: tuple[Tensor, Tensor] = cache.append(*self.keys_and_values(memory, split_position))
        return added

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, dropout={self.dropout}, backend={self.backend}"


def _rotated(query: Tensor, key: Tensor, value: Tensor, xpos: XPosTables | None) -> tuple[Tensor, Tensor, Tensor]:
    if xpos is None:
        return query, key, value
    dtype = torch.float32 if xpos.wide else query.dtype
    return rotate(query, xpos.query, dtype), rotate(key, xpos.key, dtype), value.to(dtype)


def one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A cache keeps the dtype of its first keys, which xPos widens for long prompts in float16."""
    dtype = torch.promote_types(query.dtype, key.dtype)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _drop_official_xpos_buffer(_: nn.Module, state_dict: dict[str, Tensor], prefix: str, *__: object) -> None:
    """TorchScale stores xPos's constants; ours are computed from the config."""
    state_dict.pop(f"{prefix}xpos.scale", None)
