"""Multi-head attention with TorchScale's arguments."""

from typing import Any

import torch
from torch import Tensor, nn

from ...core.ops.attention import AttentionMask
from ...core.ops.backends import attention
from .multiway_network import MultiwayWrapper
from .xpos_relative_position import XPOS


class MultiheadAttention(nn.Module):
    """Attention to the sequence itself or to another.

    Args:
        args: a config with multiway, layernorm_eps, xpos_rel_pos, xpos_scale_base and flash_attention.
        embed_dim: width.
        num_heads: heads.
        dropout: of attention weights.
        self_attention, encoder_decoder_attention: one of the two.
        subln: whether self-attention has SubLN's norm before the output projection.
    """

    def __init__(
        self,
        args: Any,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        self_attention: bool = False,
        encoder_decoder_attention: bool = False,
        subln: bool = False,
    ):
        super().__init__()
        assert self_attention ^ encoder_decoder_attention, (
            "give either self_attention=True or encoder_decoder_attention=True."
        )
        self.args = args
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropout
        self.self_attention = self_attention
        self.encoder_decoder_attention = encoder_decoder_attention
        self.k_proj = MultiwayWrapper(args, nn.Linear(embed_dim, embed_dim))
        self.v_proj = MultiwayWrapper(args, nn.Linear(embed_dim, embed_dim))
        self.q_proj = MultiwayWrapper(args, nn.Linear(embed_dim, embed_dim))
        self.out_proj = MultiwayWrapper(args, nn.Linear(embed_dim, embed_dim))
        eps = getattr(args, "layernorm_eps", 1e-5)
        inner = subln and self_attention
        self.inner_attn_ln = MultiwayWrapper(args, nn.LayerNorm(embed_dim, eps=eps)) if inner else None
        self.dropout_module = nn.Dropout(dropout)
        rotates = self_attention and getattr(args, "xpos_rel_pos", False)
        self.xpos = XPOS(self.head_dim, args.xpos_scale_base) if rotates else None

    def reset_parameters(self) -> None:
        """Xavier's initial values; of queries, keys and values smaller by the root of two."""
        for name, gain in (("k_proj", 2**-0.5), ("v_proj", 2**-0.5), ("q_proj", 2**-0.5), ("out_proj", 1.0)):
            for linear in getattr(self, name).modules():
                if isinstance(linear, nn.Linear):
                    nn.init.xavier_uniform_(linear.weight, gain=gain)
                    if name == "out_proj":
                        nn.init.zeros_(linear.bias)

    def attention_ops(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        rel_pos: Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of projected queries, keys and values.

        Args:
            q, k, v: (batch * heads, seq, head_dim); q is scaled.
            key_padding_mask: (batch, keys), True for padding.
            attn_mask: (queries, keys), added to scores.
            rel_pos: (batch * heads, queries, keys), likewise.
            is_causal: with flash_attention, a query sees keys up to its own position.

        Returns:
            (batch, queries, embed_dim), zero where a query sees nothing; and the weights
            (batch * heads, queries, keys), or None with flash_attention.
        """
        if getattr(self.args, "flash_attention", False) and rel_pos is None:
            return self._fused(q, k, v, key_padding_mask, attn_mask, is_causal), None
        scores = torch.bmm(q, k.transpose(1, 2))
        if attn_mask is not None:
            scores = scores + attn_mask
        if key_padding_mask is not None:
            hidden = key_padding_mask.bool()[:, None, None]
            scores = scores.unflatten(0, (-1, self.num_heads)).masked_fill(hidden, float("-inf")).flatten(0, 1)
        if rel_pos is not None:
            scores = scores + rel_pos.view(scores.shape)
        weights = scores.softmax(-1, dtype=torch.float32)
        if key_padding_mask is not None:
            blind = scores.isneginf().all(-1, keepdim=True)
            weights = weights.masked_fill(blind, 0.0)
        weights = weights.to(scores.dtype)
        return self._joined(torch.bmm(self.dropout_module(weights), v)), weights

    def _fused(
        self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        query, key, value = (x.unflatten(0, (-1, self.num_heads)).transpose(1, 2) for x in (q, k, v))
        mask = AttentionMask(
            causal=is_causal,
            key_padding_mask=None if padding is None else padding.bool(),
            bias=None if attn_mask is None or is_causal else attn_mask[None, None],
        )
        dropout = self.dropout if self.training else 0.0
        output, _ = attention(query, key, value, mask=mask, scale=1.0, dropout=dropout)
        return output.flatten(2)

    def _joined(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, self.num_heads)).transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2).flatten(0, 1)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        incremental_state: dict[str, Tensor] | None = None,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        rel_pos: Tensor | None = None,
        is_first_step: bool = False,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query, key, value: (batch, seq, embed_dim).
            incremental_state: where prev_key and prev_value, (batch, heads, seq, head_dim), of earlier calls are kept.
            key_padding_mask, attn_mask, rel_pos, is_causal: as for ``attention_ops``.
            is_first_step: the call brings a whole prompt.

        Returns:
            (batch, queries, embed_dim), and what ``attention_ops`` returns as weights.
        """
        q = self._split(self.q_proj(query) * self.scaling)
        k, v = self._split(self.k_proj(key)), self._split(self.v_proj(value))
        if incremental_state is not None:
            k, v = self._remembered(incremental_state, k, v)
        if self.xpos is not None:
            offset = k.size(1) - q.size(1) if incremental_state is not None else 0
            k, q = self.xpos(k, offset=0, downscale=True), self.xpos(q, offset=offset, downscale=False)
        output, weights = self.attention_ops(q, k, v, key_padding_mask, attn_mask, rel_pos, is_causal)
        if self.inner_attn_ln is not None:
            output = self.inner_attn_ln(output)
        return self.out_proj(output), weights

    def _remembered(self, state: dict[str, Tensor], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        new = {"prev_key": k, "prev_value": v}
        for name, x in new.items():
            x = x.unflatten(0, (-1, self.num_heads))
            state[name] = torch.cat((state[name], x), 2) if name in state else x
        return state["prev_key"].flatten(0, 1), state["prev_value"].flatten(0, 1)
