"""Cross-entropy of a linear projection, without all of its logits in memory at once.

The logits of a batch are (tokens, vocabulary), and plain cross-entropy holds three tensors of that size. Here a chunk
of tokens is projected at a time. :func:`linear_cross_entropy` has a loss for each token, and projects once more in the
backward pass (torch.utils.checkpoint), one matrix product in addition to the three that a projection and its gradients
take. :func:`summed_linear_cross_entropy` has their sum alone, whose gradients are known up to a factor as soon as the
logits are: it computes them with the loss, by three products.

torch 2.13 has ``torch.nn.functional.linear_cross_entropy``. It is not used because its chunked form returns the loss
in the dtype of the features (a batch's sum overflows float16 and loses digits in bfloat16), rounds small gradients to
zero in float16, and has no label smoothing; older versions lack it.
"""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy between ``softmax(features @ weight.T + bias)`` and the targets.

    Label smoothing is "Rethinking the Inception Architecture", arXiv:1512.00567, sec. 7, with fairseq's constants: the
    target has probability 1 - label_smoothing, and each other entry of the vocabulary an equal part of the rest.

    Args:
        features: (tokens, width).
        weight: (vocabulary, width).
        target: (tokens,), indices into the vocabulary.
        bias: (vocabulary,).
        ignore_index: target whose tokens count nothing.
        label_smoothing: from 0 to 1.
        chunk_size: tokens projected at a time; three tensors of the size of a chunk's logits live at once. By
            default a quarter of the tokens, and at most ``width``: then a chunk's logits are no larger than weight,
            of which the backward pass holds up to three gradients.

    Returns:
        Loss, and the negative log-likelihood it smooths, each (tokens,), 0 for ignored tokens; float32 or, for
        float64 features, float64.
    """
    tokens, width = features.shape
    size = chunk_size or min(width, math.ceil(tokens / 4))
    chunks = [
        checkpoint(
            _chunk, x, weight, bias, y, ignore_index, label_smoothing, use_reentrant=False, preserve_rng_state=False
        )
        for x, y in zip(features.split(size), target.split(size), strict=True)
    ]
    loss, nll_loss = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return loss, nll_loss


def _chunk(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    logits = F.linear(features, weight, bias)
    log_probs = F.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    nll_loss = F.nll_loss(log_probs, target, ignore_index=ignore_index, reduction="none")
    if not label_smoothing:
        return nll_loss, nll_loss
    others = -log_probs.sum(-1).masked_fill(target == ignore_index, 0.0) - nll_loss
    return (1 - label_smoothing) * nll_loss + label_smoothing / (weight.size(0) - 1) * others, nll_loss


HALF = (torch.float16, torch.bfloat16)
FLOAT16_SCALE = 2.0**14
"""Factor on the gradients of logits in float16, which lie between -1 and 1, so that small ones are not rounded to 0."""
CHUNK_BYTES = 2**29
"""Most of a chunk's logits, on a GPU. Fewer and larger chunks take a few per cent less time and more memory."""
ALIGNED = 16
"""On a GPU weight is filled up to a multiple of this many rows, so that rows of logits begin at aligned addresses.
Otherwise the fast matrix products refuse them, and the kernel reads them entry by entry."""


def summed_linear_cross_entropy(
    features: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The sums over tokens of what ``linear_cross_entropy`` returns, with less work.

    Args:
        features, weight, target, bias, ignore_index, label_smoothing: as there.
        chunk_size: tokens projected at a time. By default as there, but on a GPU equal chunks of up to CHUNK_BYTES.

    Returns:
        Loss, and the negative log-likelihood it smooths, which has no gradient; float32 or, for float64 features,
        float64.
    """
    tokens, width = features.shape
    if torch.is_autocast_enabled(features.device.type):
        dtype = torch.get_autocast_dtype(features.device.type)
        features, weight = features.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    size = min(width, math.ceil(tokens / 4))
    if features.is_cuda:
        count = math.ceil(tokens * weight.size(0) * features.element_size() / CHUNK_BYTES)
        size = math.ceil(tokens / max(count, 1))
    chunks = _Chunks(chunk_size or max(size, 1), ignore_index, label_smoothing, torch.is_grad_enabled())
    with torch.autocast(features.device.type, enabled=False):
        loss, nll_loss = _Summed.apply(features, weight, bias, target, chunks)  # type: ignore[no-untyped-call]
    return loss, nll_loss


@dataclass(frozen=True)
class _Chunks:
    size: int
    ignore_index: int
    label_smoothing: float
    with_gradients: bool


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, chunks: _Chunks
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(features.dtype, torch.float32)
        scale = FLOAT16_SCALE if features.dtype == torch.float16 else 1.0
        for_features, for_weight, for_bias = (chunks.with_gradients and wanted for wanted in ctx.needs_input_grad[:3])
        into_features, into_weight, into_bias = [], None, None
        sums, vocabulary = features.new_zeros(2, dtype=wide), weight.size(0)
        weight, bias = _aligned(weight, bias)
        for x, y in zip(features.split(chunks.size), target.split(chunks.size), strict=True):
            logits = F.linear(x, weight, bias)
            numbers = chunks.ignore_index, chunks.label_smoothing, scale
            *losses, gradient = _function_for(logits)(logits, y, vocabulary, *numbers)
            sums += torch.stack(losses)
            if for_features:
                into_features.append(_wide_product(gradient, weight))
            if for_weight:
                into_weight = _add_product(into_weight, gradient.t(), x)
            if for_bias:
                part = gradient.sum(0, dtype=wide)
                into_bias = part if into_bias is None else into_bias.add_(part)
        into_weight, into_bias = (None if g is None else g[:vocabulary] for g in (into_weight, into_bias))
        ctx.save_for_backward(torch.cat(into_features) if for_features else None, into_weight, into_bias)
        ctx.scale, ctx.dtype = scale, features.dtype
        loss, nll_loss = sums[0].clone(), sums[1].clone()  # views could not be changed in place, as fairseq does
        ctx.mark_non_differentiable(nll_loss)
        return loss, nll_loss

    @staticmethod
    def backward(ctx: Any, loss: Tensor, nll_loss: Tensor) -> tuple[Tensor | None, ...]:
        factor = loss / ctx.scale
        gradients = (None if g is None else _scaled(g, factor, ctx.dtype) for g in ctx.saved_tensors)
        return *gradients, None, None


def _scaled(x: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """``(x * factor).to(dtype)`` without the product in memory."""
    return torch.mul(x, factor, out=torch.empty_like(x, dtype=dtype))


def from_logits(
    logits: Tensor, target: Tensor, vocabulary: int, ignore_index: int, label_smoothing: float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of loss and negative log-likelihood, and the loss's gradient times ``scale``. Columns from ``vocabulary`` on
    are no logits and have a gradient of 0."""
    filling, logits = logits.size(-1) - vocabulary, logits[:, :vocabulary]
    wide = torch.promote_types(logits.dtype, torch.float32)
    real = target != ignore_index
    index = target.masked_fill(~real, 0)[:, None]
    log_total = torch.logsumexp(logits.to(wide), -1)
    nll_loss = log_total - logits.gather(-1, index).squeeze(-1).to(wide)
    share, factor = label_smoothing / (vocabulary - 1), real * scale
    gradient = ((torch.softmax(logits, -1, dtype=wide) - share) * factor[:, None]).to(logits.dtype)
    of_target = (torch.exp(-nll_loss) - (1 - label_smoothing)) * factor
    gradient = gradient.scatter(-1, index, of_target[:, None].to(logits.dtype))
    loss = nll_loss
    if label_smoothing:
        others = vocabulary * log_total - logits.sum(-1, dtype=wide) - nll_loss
        loss = (1 - label_smoothing) * nll_loss + share * others
    return (loss * real).sum(), (nll_loss * real).sum(), F.pad(gradient, (0, filling)) if filling else gradient


def _aligned(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, filled up with zeros to a multiple of ALIGNED where the kernel runs."""
    missing = -weight.size(0) % ALIGNED
    if not (missing and _has_kernel(weight)):
        return weight, bias
    return F.pad(weight, (0, 0, 0, missing)), None if bias is None else F.pad(bias, (0, missing))


def _has_kernel(x: Tensor) -> bool:
    """Whether the kernel runs, which computes in float32."""
    return x.is_cuda and x.dtype != torch.float64 and importlib.util.find_spec("triton") is not None


def _function_for(logits: Tensor) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """``from_logits``, or its kernel where that runs."""
    if _has_kernel(logits):
        from .cross_entropy_kernel import losses_and_gradients

        return losses_and_gradients
    return from_logits


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """A matrix product of half-precision matrices in float32, and of others in their own type."""
    if a.dtype not in HALF:
        return a @ b
    if a.is_cuda and "dtype" in torch.ops.aten.mm.overloads():
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Add ``_wide_product(a, b)`` to a total, or begin one. The product adds what it computes by itself where it can,
    and spares a matrix in memory."""
    if total is None:
        return _wide_product(a, b)
    if a.dtype not in HALF:
        return total.addmm_(a, b)
    if a.is_cuda and torch.__version__ >= "2.11":  # older ones take no total in float32
        torch.ops.aten.addmm.dtype_out(total, a, b, torch.float32, out=total)
        return total
    return total.addmm_(a.float(), b.float())
