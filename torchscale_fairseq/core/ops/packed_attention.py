"""Attention within the documents of packed rows: by a kernel that knows sequences of different lengths, or document by
document. Documents of similar length are computed together, as rows of a batch."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from .attention import AttentionMask, AttentionRequest
from .documents import Documents, Group

HALF = (torch.float16, torch.bfloat16)
WIDEST_HEAD = 256
MOST_ROW_BYTES = 2**31
"""Bytes of a bias for whole rows; a larger one is added document by document."""
MaskT = TypeVar("MaskT", bound=AttentionMask)
Attend = Callable[[Tensor, Tensor, Tensor, AttentionMask], Tensor]
"""Attention of (batch, seq, heads, head_dim) under a mask."""


def varlen_refusal(request: AttentionRequest) -> str | None:
    """Why flash attention cannot compute all documents at once, as the rest of a sentence; None if it can."""
    query, mask = request.query, request.mask
    if query.device.type != "cuda" or query.dtype not in HALF:
        return f"needs fp16 or bf16 on a GPU, not {query.dtype} on {query.device.type}"
    if torch.cuda.get_device_capability(query.device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or more"
    if mask.bias is not None or mask.block:
        return "knows no bias and no blockwise causal attention"
    if query.size(-1) > WIDEST_HEAD or query.size(-1) % 8:
        return f"needs heads of at most {WIDEST_HEAD} channels, a multiple of 8, not {query.size(-1)}"
    return None


def varlen_attention(request: AttentionRequest) -> Tensor:
    """Attention within documents by torch's flash attention for sequences of different lengths, which is
    differentiable. Shapes as for ``ops.backends.attention``."""
    documents, query = _documents(request), request.query
    of_keys = request.mask.key_documents or documents
    output, *_ = torch.ops.aten._flash_attention_forward.default(
        *(x.flatten(0, 1) for x in (query, request.key, request.value)),
        *(documents.offsets, of_keys.offsets, documents.longest, of_keys.longest),
        *(request.dropout, request.mask.causal, False),
        scale=request.scale,
    )
    return output.view(query.shape)


def with_row_bias(mask: MaskT, dtype: torch.dtype) -> MaskT:
    """The mask with its documents and its order of tokens written into its bias, where that is the fastest: on a GPU,
    whose kernels with a bias know no documents, and to which many short documents are many launches.

    Made once for all layers, which add the gradients of one tensor.

    Args:
        mask: for self-attention.
        dtype: of the queries.
    """
    bias, documents = mask.bias, mask.documents
    if bias is None or documents is None or mask.block or not bias.is_cuda:
        return mask
    batch, length = documents.starts.shape
    if batch * bias.size(1) * length**2 * dtype.itemsize > MOST_ROW_BYTES:
        return mask
    return _written_into_bias(mask, documents, bias.to(dtype))


def _written_into_bias(mask: MaskT, documents: Documents, bias: Tensor) -> MaskT:
    """``with_row_bias``, whatever the device and the size; the bias is for whole rows."""
    number = documents.starts.cumsum(1)
    hidden = number.unsqueeze(2) != number.unsqueeze(1)
    if mask.causal:
        hidden = hidden | torch.ones_like(hidden[0]).triu(1)
    whole = bias.masked_fill(hidden.unsqueeze(1), float("-inf"))
    return replace(mask, causal=False, documents=None, bias=whole)


def attention_by_documents(request: AttentionRequest, attend: Attend) -> Tensor:
    """Attention within documents, group by group. Shapes as for ``ops.backends.attention``; a bias is for documents,
    (1, heads or 1, n, n), n at least the longest one's tokens."""
    documents = _documents(request)
    inputs = [x.flatten(0, 1) for x in (request.query, request.key, request.value)]
    outputs = [_of_group(inputs, group, request.mask, attend) for group in documents.groups]
    return torch.cat(outputs).index_select(0, documents.ungrouped).view(request.query.shape)


def _of_group(inputs: list[Tensor], group: Group, mask: AttentionMask, attend: Attend) -> Tensor:
    """(tokens of the group, heads, head_dim)."""
    keys = group if mask.key_documents is None else mask.key_documents.group(group.documents)
    query, key, value = inputs[0][group.tokens], inputs[1][keys.tokens], inputs[2][keys.tokens]
    length = group.tokens.size(1)
    bias = None if mask.bias is None else mask.bias[..., :length, :length]
    hidden = None if mask.causal else keys.beyond  # causal attention does not look to the right
    alone = replace(mask, documents=None, key_documents=None, bias=bias, key_padding_mask=hidden)
    output = attend(query, key, value, alone)
    return output.flatten(0, 1) if group.beyond is None else output[~group.beyond]


def _documents(request: AttentionRequest) -> Documents:
    assert request.mask.documents is not None
    return request.mask.documents
