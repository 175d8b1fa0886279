"""Cross-entropy of a linear projection, without all of its logits in memory at once.

The logits of a batch are (tokens, vocabulary), and plain cross-entropy holds three tensors of that size. Here a chunk
of tokens is projected at a time, and once more in the backward pass (torch.utils.checkpoint), which costs one more
matrix product beside the three that a projection and its gradients take.

torch 2.13 has ``torch.nn.functional.linear_cross_entropy``. It is not used because its chunked form returns the loss
in the dtype of the features (a batch's sum overflows float16 and loses digits in bfloat16), computes gradients in the
forward pass, before the loss scale is known, and has no label smoothing; older versions lack it.
"""

import math

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
