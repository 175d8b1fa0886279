"""The one function through which attention is computed, and the choice of its implementation."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .attention import EVERYTHING, AttentionMask, AttentionRequest, AttentionResult, naive_attention
from .backend import Backend, choose
from .flash_attention import FlashAttn
from .masks import is_traced
from .packed_attention import attention_by_documents, varlen_attention, varlen_refusal

CUDNN_FROM = 2048
"""Least number of keys for which torch may choose cuDNN's attention. From that number on it is the fastest; but it
plans for every new shape, 0.1 s and more on an H100, and shorter batches seldom have the same shape twice. Code that is
compiled for one shape may choose it for any number, code for many shapes for none."""
WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: AttentionMask = EVERYTHING,
    scale: float | None = None,
    dropout: float = 0.0,
    need_log_sum_exp: bool = False,
    backend: str = "sdpa",
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention through a backend.

    Args:
        query: (batch, query_length, heads, head_dim).
        key, value: (batch, key_length, heads, head_dim).
        mask: which keys a query may see, and what is added to its scores.
        scale: factor on the scores; head_dim ** -0.5 by default.
        dropout: probability to drop a weight; 0 outside training.
        need_log_sum_exp: also return the log-sum-exp of the scores.
        backend: name of one in ``ATTENTION``: naive (the definition), sdpa (torch's fused kernels) or flash_attn (the
            package of that name).

    Returns:
        Output shaped like query, zero where a query sees no key; and the log-sum-exp
        (batch, heads, query_length), -inf there, or None unless needed.

    Raises:
        InputError: the backend is unknown or cannot serve the request.
    """
    scale = query.size(-1) ** -0.5 if scale is None else scale
    request = AttentionRequest(query, key, value, mask, scale, dropout, need_log_sum_exp)
    if mask.documents is not None:
        return _within_documents(request, backend), None
    return choose(ATTENTION, request, backend, option="attention_backend").run(request)


def _within_documents(request: AttentionRequest, backend: str) -> Tensor:
    """Attention within the documents of packed rows; by sdpa, with torch's flash attention where it can."""
    assert not request.need_log_sum_exp, "dilated attention, which needs it, refuses documents"
    if backend == "sdpa" and varlen_refusal(request) is None:
        return varlen_attention(request)

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask) -> Tensor:
        options: dict[str, Any] = {"scale": request.scale, "dropout": request.dropout, "backend": backend}
        return attention(query, key, value, mask=mask, **options)[0]

    return attention_by_documents(request, attend)


class Naive:
    """The definition."""

    name = "naive"

    def refusal(self, request: AttentionRequest) -> None:
        """It serves every request."""

    def run(self, request: AttentionRequest) -> AttentionResult:
        """``naive_attention``."""
        return naive_attention(
            request.query,
            request.key,
            request.value,
            visible=request.visible(),
            bias=request.mask.bias,
            scale=request.scale,
            dropout=request.dropout,
        )


class Sdpa:
    """torch's fused kernels."""

    name = "sdpa"

    def refusal(self, request: AttentionRequest) -> str | None:
        """It returns no log-sum-exp."""
        return "gives no log-sum-exp" if request.need_log_sum_exp else None

    def run(self, request: AttentionRequest) -> AttentionResult:
        """``F.scaled_dot_product_attention``; blockwise attention in memory linear in the length where it can."""
        return _sdpa(request)


def _sdpa(request: AttentionRequest) -> AttentionResult:
    bias, padding = request.mask.bias, request.mask.key_padding_mask
    plain = padding is None and bias is None
    if request.mask.block and plain and request.query.size(1) == request.key.size(1):
        return _sdpa_of_blocks(request), None
    query, key, value = (x.transpose(1, 2) for x in (request.query, request.key, request.value))
    if plain and request.mask.causal and not request.mask.block and query.size(2) == key.size(2):
        output = _by_torch(query, key, value, dropout_p=request.dropout, scale=request.scale, is_causal=True)
        return output.transpose(1, 2), None

    visible = request.visible()
    blind = None
    if visible is not None and padding is not None:
        # A query that sees nothing is given all keys and then zeroed: kernels differ on empty rows.
        blind = ~visible.any(-1, keepdim=True)
        visible = visible | blind
    mask = visible if bias is None else bias.to(query.dtype)
    if bias is not None and visible is not None:
        mask = mask.masked_fill(~visible, float("-inf"))  # type: ignore[union-attr]
    output = _by_torch(query, key, value, attn_mask=mask, dropout_p=request.dropout, scale=request.scale)
    if blind is not None:
        output = output.masked_fill(blind, 0.0)
    return output.transpose(1, 2), None


def _by_torch(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """``F.scaled_dot_product_attention``, without cuDNN's kernels where they do not pay."""
    if torch.compiler.is_compiling():
        if is_traced() or _is_fixed(*query.shape, key.size(2)):
            return F.scaled_dot_product_attention(query, key, value, **options)
        with sdpa_kernel(WITHOUT_CUDNN):
            return F.scaled_dot_product_attention(query, key, value, **options)
    if not key.is_cuda or key.size(2) >= CUDNN_FROM or not torch.backends.cuda.cudnn_sdp_enabled():
        return F.scaled_dot_product_attention(query, key, value, **options)
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        return F.scaled_dot_product_attention(query, key, value, **options)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def _is_fixed(*sizes: int) -> bool:
    """Whether compiled code is for these sizes alone, as far as torch tells: before torch 2.7 it does not."""
    from torch.fx.experimental import symbolic_shapes  # takes a while to load

    tells = getattr(symbolic_shapes, "has_static_value", None)
    return tells is None or all(map(tells, sizes))


def _sdpa_of_blocks(request: AttentionRequest) -> Tensor:
    """Blockwise causal attention in memory linear in the length: each block is a row of the batch."""
    batch, length = request.query.shape[:2]
    block = request.mask.block
    query, key, value = (
        F.pad(x, (0, 0, 0, 0, 0, -length % block)).unflatten(1, (-1, block))
        for x in (request.query, request.key, request.value)
    )
    before = [torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1) for x in (key, value)]
    nothing_before = torch.zeros(query.shape[:2], dtype=torch.bool, device=query.device)
    nothing_before[:, 0] = True
    padding = nothing_before.flatten()[:, None] & (torch.arange(2 * block, device=query.device) < block)
    rows = AttentionRequest(
        query.flatten(0, 1),
        torch.cat((before[0], key), 2).flatten(0, 1),
        torch.cat((before[1], value), 2).flatten(0, 1),
        AttentionMask(causal=True, key_padding_mask=padding),
        request.scale,
        request.dropout,
    )
    output, _ = _sdpa(rows)
    return output.reshape(batch, -1, *request.query.shape[2:])[:, :length]


ATTENTION: list[Backend[AttentionRequest, AttentionResult]] = [Sdpa(), Naive(), FlashAttn()]
"""The backends of ``attention``, by the names of the option attention_backend."""
