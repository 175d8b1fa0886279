"""The one function through which dilated attention is computed, and the choice of what computes it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import AttentionMask
from .backend import Backend, choose
from .backends import attention
from .dilated_layout import Layout
from .dilated_parts import Part, Settings, mix
from .dilated_pattern import Branch, checked_branches, head_offsets
from .gelu_norm import TRITON
from .masks import is_traced, marked

if TRITON:
    from .dilated_launches import LARGEST_HEAD, attend_to_all_branches


def dilated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_lengths: Sequence[int],
    dilation_ratios: Sequence[int],
    *,
    causal: bool = False,
    key_padding_mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str = "sdpa",
    torchscale_compatible: bool = False,
) -> Tensor:
    """Dilated attention in memory and, with segments of bounded length over ratio, time linear in the sequence.

    ``DILATED`` lists what computes it. Rows without padding whose tokens are all kept, in one segment, take
    ``attention``.

    Args:
        query, key, value: (batch, seq, heads, head_dim).
        segment_lengths: tokens per segment, one entry per branch; longer than the sequence means all of it.
        dilation_ratios: keep every r-th token of a segment, one entry per branch.
        causal: a query sees keys up to its own position.
        key_padding_mask: (batch, seq), True for padding, left or right of a row's tokens. Nothing sees it, and the
            segments of a row begin at its first real token.
        scale: factor on the scores; head_dim ** -0.5 by default.
        dropout: probability to drop a weight of a branch; 0 outside training.
        backend: sdpa (torch's kernels), naive or flash_attn, as for ``choose_kernel``.
        torchscale_compatible: heads keep offsets in contiguous groups, and the weights of branches carry no gradient.

    Returns:
        (batch, seq, heads, head_dim); zero at padding, and for a head where no branch keeps a token.

    Raises:
        ValueError: the lists do not fit each other, an entry is below 1, there is padding between real tokens, or the
            backend cannot serve the request.
    """
    branches = checked_branches(segment_lengths, dilation_ratios)
    if key_padding_mask is None and _are_whole(branches, query.size(1)):
        mask = AttentionMask(causal=causal)
        return attention(query, key, value, mask=mask, scale=scale, dropout=dropout, backend=backend)[0]
    scale = query.size(-1) ** -0.5 if scale is None else scale
    real, starts = _extent(query, key_padding_mask)
    if starts is not None:
        query, key, value = (_roll(x, starts) for x in (query, key, value))
    settings = Settings(scale, dropout, backend, detach=torchscale_compatible)
    request = DilatedRequest(query, key, value, branches, causal, real, settings)
    logged = "dilated_attention" if query.is_cuda else ""  # elsewhere there is one way
    output = choose(DILATED, request, option=logged, explain=True).run(request)
    return output if starts is None else _roll(output, -starts)


def _are_whole(branches: list[Branch], length: int) -> bool:
    """Whether each branch keeps all tokens, in one segment, so that all compute the same. Exported code, whose lengths
    are open, does not know."""
    return not (is_traced() or any(b.ratio > 1 for b in branches) or any(b.segment_length < length for b in branches))


def _extent(query: Tensor, key_padding_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Which tokens are real once rows begin with their first real one, (batch, seq), and the rows' first real
    tokens; None where nothing is padded, or nothing on the left."""
    key_padding_mask = marked(key_padding_mask)
    if key_padding_mask is None:
        return None, None
    real = ~key_padding_mask
    starts, counts = real.to(torch.uint8).argmax(1), real.sum(1)
    aligned = torch.arange(query.size(1), device=query.device)[None] < counts[:, None]
    if is_traced():
        return aligned, starts
    if not torch.equal(_roll(real, starts), aligned):
        raise ValueError("key_padding_mask has padding between real tokens; it may stand left or right of them only.")
    return aligned, starts if starts.any() else None


def _roll(x: Tensor, shifts: Tensor) -> Tensor:
    """Each row of (batch, seq, ...) moved left by its shift, around the end."""
    index = (torch.arange(x.size(1), device=x.device)[None] + shifts[:, None]) % x.size(1)
    return x[torch.arange(x.size(0), device=x.device)[:, None], index]


class DilatedRequest(NamedTuple):
    """Dilated attention of rows that begin with their first real token."""

    query: Tensor
    """(batch, seq, heads, head_dim), as key and value."""
    key: Tensor
    value: Tensor
    branches: list[Branch]
    causal: bool
    real: Tensor | None
    """(batch, seq), True for tokens; None for all."""
    settings: Settings


class AllBranchesAtOnce:
    """Kernels of this package, which read kept tokens where they are: one launch for all branches."""

    name = "all branches at once"

    def refusal(self, request: DilatedRequest) -> str | None:
        """It serves half precision on a Hopper GPU, without dropout."""
        settings = request.settings
        if settings.backend != "sdpa":
            return f"is not what attention_backend={settings.backend} asks for"
        if settings.dropout:
            return "has no dropout"
        if settings.detach:
            return "differentiates the weights of branches, which TorchScale's code does not"
        return _kernel_refusal(request.query)

    def run(self, request: DilatedRequest) -> Tensor:
        """``attend_to_all_branches``."""
        segments, ratios = zip(*request.branches, strict=True)
        return attend_to_all_branches(
            request.query,
            request.key,
            request.value,
            segments,
            ratios,
            real=request.real,
            scale=request.settings.scale,
            causal=request.causal,
        )


class BranchByBranch:
    """Each branch is one call of a kernel over its kept tokens, forward and backward. Which kernel, and what is written
    out because none serves it, is said by ``choose_kernel``."""

    name = "branch by branch"

    def refusal(self, request: DilatedRequest) -> None:
        """It serves every request."""

    def run(self, request: DilatedRequest) -> Tensor:
        """``dilated_parts.mix``."""
        query, settings = request.query, request.settings
        batch, length, heads = query.shape[:3]
        parts = []
        for branch in request.branches:
            offsets = head_offsets(heads, branch.ratio, query.device, contiguous=settings.detach)
            parts.append(Part(slice(length), Layout(branch, offsets, batch, length), request.causal))
        return mix(query, request.key, request.value, parts, real=request.real, settings=settings)


DILATED: list[Backend[DilatedRequest, Tensor]] = [AllBranchesAtOnce(), BranchByBranch()]
"""In order of preference."""


def _kernel_refusal(query: Tensor) -> str | None:
    batch, _, heads, head_dim = query.shape
    if not TRITON or query.device.type != "cuda" or query.dtype not in (torch.float16, torch.bfloat16):
        return f"needs fp16 or bf16 on a GPU, and Triton, not {query.dtype} on {query.device.type}"
    if torch.cuda.get_device_capability(query.device)[0] != 9:
        return "is made for Hopper GPUs (compute capability 9)"
    if head_dim % 8 or head_dim > LARGEST_HEAD:
        return f"needs heads of at most {LARGEST_HEAD} channels, a multiple of 8, not {head_dim}"
    if batch * heads > LARGEST_GRID:
        return f"takes at most {LARGEST_GRID} rows times heads, not {batch * heads}"
    return "cannot be exported" if is_traced() else None


LARGEST_GRID = 65535 // 3
"""A third of the programs along the second axis of a launch, which may serve three gradients."""
