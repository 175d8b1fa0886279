"""LongNet's attention with TorchScale's arguments."""

from typing import Any

import torch
from torch import Tensor

from ...core.ops.dilated import dilated_attention
from .multihead_attention import MultiheadAttention
from .utils import get_data_parallel_world_size

_STEPS = ("dense_to_sparse", "sparse_to_dense", "gather_kv", "gathering", "scattering")


class DilatedAttention(MultiheadAttention):
    """Self-attention over segments of several lengths, each of which keeps every r-th token (arXiv:2307.02486).

    ``args`` also has segment_length and dilated_ratio. Padding is not attended to.
    """

    def __getattr__(self, name: str) -> Any:
        if name in _STEPS:
            raise AttributeError(
                f"DilatedAttention.{name} is not kept: segments are read in place instead of being copied; override "
                "attention_ops or forward, or call torchscale_fairseq.dilated_attention."
            )
        return super().__getattr__(name)

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
    ) -> tuple[Tensor, None]:
        """As of ``MultiheadAttention``; ``attn_mask`` is that of causal attention, which ``is_causal`` says.

        With an incremental state, which then keeps queries too (prev_query), the whole sequence so far is computed.

        Raises:
            AssertionError: a relative bias is given.
            NotImplementedError: the config has seq_parallel, and there are several processes.
        """
        assert rel_pos is None, "dilated attention takes no relative bias."
        _refuse_slices(self.args)
        q, k, v = self._split(self.q_proj(query)), self._split(self.k_proj(key)), self._split(self.v_proj(value))
        new = q.size(1)
        if incremental_state is not None:
            k, v = self._remembered(incremental_state, k, v)
            before = incremental_state.get("prev_query")
            q = q.unflatten(0, (-1, self.num_heads))
            incremental_state["prev_query"] = q = q if before is None else torch.cat((before, q), 2)
            q = q.flatten(0, 1)
        if self.xpos is not None:
            k, q = self.xpos(k, downscale=True), self.xpos(q)
        q, k, v = (x.unflatten(0, (-1, self.num_heads)).transpose(1, 2) for x in (q, k, v))
        output = dilated_attention(
            q,
            k,
            v,
            self.args.segment_length,
            self.args.dilated_ratio,
            causal=is_causal,
            key_padding_mask=None if key_padding_mask is None else key_padding_mask.bool(),
            dropout=self.dropout if self.training else 0.0,
            torchscale_compatible=True,
        )
        output = output.flatten(2)[:, -new:]
        if self.inner_attn_ln is not None:
            output = self.inner_attn_ln(output)
        return self.out_proj(output), None


def _refuse_slices(args: Any) -> None:
    if getattr(args, "seq_parallel", False) and get_data_parallel_world_size() > 1:
        raise NotImplementedError(
            "seq_parallel=True is not served under TorchScale's names: give each process whole sequences and set "
            "seq_parallel=False, or split them with a SequenceSlice for torchscale_fairseq.LongNetEncoder, or with "
            "--seq-parallel on fairseq's command line."
        )
