"""Attention that also returns the logarithm of its denominator."""

from torch import Tensor

from ...core.ops.attention import AttentionMask
from ...core.ops.backends import attention


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float = 0.0,
    bias: Tensor | None = None,
    softmax_scale: float | None = None,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attention in the plain form, on any device.

    Args:
        q, k, v: (batch, seq, heads, head_dim).
        dropout: of attention weights.
        bias: added to scores; broadcastable to (batch, heads, queries, keys).
        softmax_scale: factor on scores; head_dim ** -0.5 by default.
        is_causal: a query sees keys up to its own position.

    Returns:
        Output shaped like q, and the log-sum-exp of the scores (batch, heads, queries).
    """
    output, log_sum_exp = attention(
        q,
        k,
        v,
        mask=AttentionMask(causal=is_causal, bias=bias),
        scale=softmax_scale,
        dropout=dropout,
        need_log_sum_exp=True,
        backend="naive",
    )
    assert log_sum_exp is not None
    return output, log_sum_exp
