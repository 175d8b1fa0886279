"""Multi-scale retention with TorchScale's arguments (arXiv:2307.08621)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.initialization import RETENTION_GAINS
from .feedforward_network import get_activation_fn as get_activation_fn
from .rms_norm import RMSNorm
from .xpos_relative_position import rotate_every_two as rotate_every_two


def duplicate_interleave(m: Tensor) -> Tensor:
    """(seq, dim) to (seq, 2 * dim), each column twice."""
    return m.repeat_interleave(2, -1)


def theta_shift(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Turn pairs of channels."""
    return x * cos + rotate_every_two(x) * sin


class MultiScaleRetention(nn.Module):
    """out_proj(swish(g_proj(x)) * group_norm(retention(x))).

    Args:
        args: a config with layernorm_eps.
        embed_dim, value_dim: widths of queries and keys, and of values.
        num_heads: heads; divides both.
        gate_fn: name of the gate's activation.
    """

    def __init__(self, args: Any, embed_dim: int, value_dim: int, num_heads: int, gate_fn: str = "swish"):
        super().__init__()
        self.args = args
        self.embed_dim = embed_dim
        self.value_dim = value_dim
        self.num_heads = num_heads
        self.head_dim = value_dim // num_heads
        self.key_dim = embed_dim // num_heads
        self.scaling = self.key_dim**-0.5
        self.gate_fn = get_activation_fn(activation=str(gate_fn))
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.k_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.v_proj = nn.Linear(embed_dim, value_dim, bias=False)
        self.g_proj = nn.Linear(embed_dim, value_dim, bias=False)
        self.out_proj = nn.Linear(value_dim, embed_dim, bias=False)
        self.group_norm = RMSNorm(self.head_dim, eps=args.layernorm_eps, elementwise_affine=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier's initial values, with RetNet's gains."""
        for name, gain in RETENTION_GAINS.items():
            nn.init.xavier_uniform_(getattr(self, name).weight, gain=gain)

    def parallel_forward(self, qr: Tensor, kr: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """All tokens at once.

        Args:
            qr, kr: (batch, heads, seq, key_dim), rotated.
            v: (batch, seq, value_dim).
            mask: (heads, seq, seq), normalised decays.

        Returns:
            (batch, seq, heads, head_dim).
        """
        scores = (qr @ kr.transpose(-1, -2)) * mask
        scores = scores / scores.detach().sum(-1, keepdim=True).abs().clamp_min(1)
        return (scores @ self._values(v)).transpose(1, 2)

    def recurrent_forward(
        self, qr: Tensor, kr: Tensor, v: Tensor, decay: Tensor, incremental_state: dict[str, Tensor]
    ) -> Tensor:
        """One token, and the state in ``incremental_state``: prev_key_value (batch, heads, head_dim, key_dim) and
        scale (batch, heads).

        Args:
            qr, kr: (batch, heads, 1, key_dim), rotated.
            v: (batch, 1, value_dim).
            decay: (heads,).

        Returns:
            (batch, 1, heads, head_dim).
        """
        product = self._values(v).transpose(-1, -2) * kr  # (batch, heads, head_dim, key_dim)
        if "prev_key_value" in incremental_state:
            before = incremental_state["scale"].to(product)
            scale = before * decay.to(product) + 1
            kept = before.sqrt() * decay.to(product) / scale.sqrt()
            product = (
                incremental_state["prev_key_value"] * kept[..., None, None] + product / scale.sqrt()[..., None, None]
            )
        else:
            scale = torch.ones(*product.shape[:2], dtype=product.dtype, device=product.device)
        incremental_state["prev_key_value"], incremental_state["scale"] = product, scale
        return (qr * product).sum(-1, keepdim=True).transpose(-1, -2).transpose(1, 2)

    def chunk_recurrent_forward(self, qr: Tensor, kr: Tensor, v: Tensor, inner_mask: tuple[Tensor, ...]) -> Tensor:
        """Chunk by chunk; equals ``parallel_forward`` to rounding.

        Args:
            qr, kr, v: as for ``parallel_forward``, whole chunks.
            inner_mask: of ``RetNetRelPos``: decays within a chunk (heads, chunk, chunk), over a chunk (heads, 1, 1), of
                queries and of values (heads, chunk, 1), and the root of each token's sum of decays (heads, seq, 1).
        """
        mask, over_chunk, of_queries, of_values, scale = inner_mask
        size = mask.size(-1)
        q, k = (x.unflatten(2, (-1, size)) for x in (qr, kr))
        values = F.pad(self._values(v), (0, 1), value=1.0).unflatten(2, (-1, size))  # the ones add up the scores
        within = ((q @ k.transpose(-1, -2)) * mask[:, None]) @ values
        added = k.transpose(-1, -2) @ (values * of_values[:, None])
        state, before = torch.zeros_like(added[:, :, 0]), []
        for chunk in added.unbind(2):
            before.append(state)
            state = state * over_chunk + chunk
        across = (q * of_queries[:, None]) @ torch.stack(before, 2)
        output = (within + across).flatten(2, 3) / scale
        total = output[..., -1:].detach().abs().clamp_min(1)
        return (output[..., :-1] / total).transpose(1, 2)

    def _values(self, v: Tensor) -> Tensor:
        return v.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        rel_pos: tuple[tuple[Tensor, Tensor], Any],
        chunkwise_recurrent: bool = False,
        incremental_state: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Retain over (batch, seq, embed_dim).

        Args:
            rel_pos: of ``RetNetRelPos``.
            chunkwise_recurrent: by chunks; otherwise all at once, or one token with an incremental state.
        """
        (sin, cos), inner_mask = rel_pos
        q, k, v, g = self.q_proj(x), self.k_proj(x) * self.scaling, self.v_proj(x), self.g_proj(x)
        q, k = (y.unflatten(-1, (self.num_heads, self.key_dim)).transpose(1, 2) for y in (q, k))
        qr, kr = theta_shift(q, sin, cos), theta_shift(k, sin, cos)
        if incremental_state is not None:
            output = self.recurrent_forward(qr, kr, v, inner_mask, incremental_state)
        elif chunkwise_recurrent:
            output = self.chunk_recurrent_forward(qr, kr, v, inner_mask)
        else:
            output = self.parallel_forward(qr, kr, v, inner_mask)
        output = self.group_norm(output).flatten(2).to(x.dtype)
        result: Tensor = self.out_proj(self.gate_fn(g) * output)
        return result
