"""Multi-scale retention."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.gating import normalised_gate
from ..ops.retention_forms import retention
from .linear import LinearFactory, dense, projected
from .retention_inputs import RetentionInputs


class RetentionState:
    """The state of a layer: one matrix per head, independent of the number of tokens read."""

    def __init__(self) -> None:
        self.content: Tensor | None = None
        """(batch, heads, key_dim, value_dim), float32 at least."""

    def select(self, rows: Tensor) -> None:
        """Keep the given batch rows, in the given order."""
        if self.content is not None:
            self.content = self.content.index_select(0, rows)

    @property
    def batch_size(self) -> int:
        """Rows held."""
        return 0 if self.content is None else self.content.size(0)


class MultiScaleRetention(nn.Module):
    """out_proj(swish(g_proj(x)) * group_norm(retention(q_proj(x), k_proj(x), v_proj(x)))), without biases.

    "Retentive Network", arXiv:2307.08621, sec. 2.2, eq. 8; the norm of each head is an RMSNorm without weights, as in
    the authors' later code. Initial values are left to ``initialization.initialize_retnet``.

    Args:
        embed_dim: width of queries, keys and output.
        value_dim: width of values and gate.
        num_heads: heads; divides both.
        norm_eps: epsilon of each head's norm.
        clamp_scores: divide a token's output by the absolute sum of its scores where that is above 1, as TorchScale's
            parallel form does (the third score normalisation of sec. 2.4); the norm cancels it up to its epsilon.
        chunkwise: use the chunkwise form at any length.
        chunk_size: tokens.
        backend: auto, torch or fla.
        linear: makes the projections.
    """

    def __init__(
        self,
        embed_dim: int,
        value_dim: int,
        num_heads: int,
        *,
        norm_eps: float = 1e-6,
        clamp_scores: bool = False,
        chunkwise: bool = False,
        chunk_size: int = 128,
        backend: str = "auto",
        linear: LinearFactory = dense,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.norm_eps = norm_eps
        self.clamp_scores = clamp_scores
        self.chunkwise = chunkwise
        self.chunk_size = chunk_size
        self.backend = backend
        self.q_proj = linear(embed_dim, embed_dim, bias=False)
        self.k_proj = linear(embed_dim, embed_dim, bias=False)
        self.v_proj = linear(embed_dim, value_dim, bias=False)
        self.g_proj = linear(embed_dim, value_dim, bias=False, activated=True)
        self.out_proj = linear(value_dim, embed_dim, bias=False)

    def forward(self, x: Tensor, inputs: RetentionInputs, state: RetentionState | None = None) -> Tensor:
        """Retain over the sequence, and what the state holds.

        Args:
            x: (batch, seq, embed_dim).
            inputs: the rest, which layers share.
            state: of earlier tokens; takes in these.

        Returns:
            (batch, seq, embed_dim).
        """
        query, key, value, gate = projected(x, self.q_proj, self.k_proj, self.v_proj, self.g_proj)
        value = self._heads(value)
        if self.clamp_scores:  # a channel of ones sums the scores, in every form
            value = F.pad(value, (0, 1), value=1.0)
        output, content = retention(
            self._heads(query),
            self._heads(key),
            value,
            inputs.log_decay,
            rotation=inputs.tables,
            padding_mask=inputs.padding_mask,
            document_starts=inputs.document_starts,
            state=None if state is None else state.content,
            chunkwise=self.chunkwise,
            chunk_size=self.chunk_size,
            backend=self.backend,
            overwrite_state=True,
            need_state=state is not None,
            packing=inputs.packing,
        )
        if state is not None:
            state.content = content
        if self.clamp_scores:
            output = output[..., :-1] / output[..., -1:].detach().abs().clamp_min(1.0)
        return self.out_proj(normalised_gate(gate, output, self.norm_eps))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def extra_repr(self) -> str:
        form = f"chunkwise={self.chunkwise}, chunk_size={self.chunk_size}, backend={self.backend}"
        return f"num_heads={self.num_heads}, {form}"
