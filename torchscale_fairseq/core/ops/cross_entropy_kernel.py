"""Cross-entropy of logits on a GPU: losses, and their gradients in the memory of the logits, in one launch.

Each row of logits is read twice and written once. The second read mostly finds the row in the cache. The definition is
``from_logits`` in ``linear_cross_entropy.py``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

STRIPES, BLOCK, WARPS = 2, 4096, 16
"""Parts of BLOCK columns at a time, which share one maximum per column of a part, and warps per row: the fastest of
fourteen choices on an H200, with 50,000 columns in bfloat16."""


def losses_and_gradients(
    logits: Tensor, target: Tensor, vocabulary: int, ignore_index: int, label_smoothing: float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of loss and negative log-likelihood, and the loss's gradient times ``scale``.

    Args:
        logits: (tokens, vocabulary or more) on a GPU, each row contiguous; overwritten by the gradient.
        target: (tokens,), indices into the vocabulary.
        vocabulary: entries; columns from there on are no logits and have a gradient of 0.
        ignore_index: target whose tokens count nothing.
        label_smoothing: from 0 to 1.
        scale: factor on the gradient.

    Returns:
        Loss and negative log-likelihood, float32 scalars; and logits, which now hold the gradient.
    """
    rows, row_length = logits.shape
    losses = torch.empty(2, rows, device=logits.device)
    with torch.cuda.device_of(logits):
        _kernel[(rows,)](
            logits,
            logits.stride(0),
            target,
            losses[0],
            losses[1],
            row_length,
            vocabulary,
            ignore_index,
            label_smoothing,
            scale,
            SMOOTHED=label_smoothing > 0,
            FILLED=row_length > vocabulary,
            STRIPES=STRIPES,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    loss, nll_loss = losses.sum(1)
    return loss, nll_loss, logits


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    logits,
    stride,
    targets,
    losses,
    nll_losses,
    row_length,
    vocabulary,
    ignore_index,
    smoothing,
    scale,
    SMOOTHED: tl.constexpr,
    FILLED: tl.constexpr,
    STRIPES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    columns = tl.arange(0, STRIPES)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    if target == ignore_index:
        for start in range(0, row_length, STRIPES * BLOCK):
            zeros = tl.zeros((STRIPES, BLOCK), logits.dtype.element_ty)
            tl.store(logits + start + columns, zeros, mask=start + columns < row_length)
        tl.store(losses + row, 0.0)
        tl.store(nll_losses + row, 0.0)
        return

    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    plain = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, row_length, STRIPES * BLOCK):
        x = _entries(logits, start + columns, row_length, vocabulary, FILLED)
        new = tl.maximum(largest, tl.max(x, 0))
        shift = tl.where(new == float("-inf"), 0.0, new)
        total = total * _exp(largest - shift) + tl.sum(_exp(x - shift[None, :]), 0)
        largest = new
        if SMOOTHED:
            plain += tl.sum(tl.where(start + columns < vocabulary, x, 0.0), 0)
    top = tl.max(largest, 0)
    log_total = top + tl.log(tl.sum(total * _exp(largest - top), 0))
    nll_loss = log_total - tl.load(logits + target).to(tl.float32)
    share = smoothing / (vocabulary - 1)
    loss = nll_loss
    if SMOOTHED:
        others = vocabulary * log_total - tl.sum(plain, 0) - nll_loss
        loss = (1 - smoothing) * nll_loss + share * others
    tl.store(losses + row, loss)
    tl.store(nll_losses + row, nll_loss)

    for start in range(0, row_length, STRIPES * BLOCK):
        x = _entries(logits, start + columns, row_length, vocabulary, FILLED)
        wanted = tl.where(start + columns == target, 1 - smoothing, share)
        gradient = (_exp(x - log_total) - wanted) * scale
        if FILLED:
            gradient = tl.where(start + columns < vocabulary, gradient, 0.0)
        tl.store(logits + start + columns, gradient.to(logits.dtype.element_ty), mask=start + columns < row_length)


@triton.jit  # type: ignore[untyped-decorator]
def _entries(logits, columns, row_length, vocabulary, FILLED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logits of a row in float32, -inf where there are none."""
    x = tl.load(logits + columns, mask=columns < row_length, other=float("-inf")).to(tl.float32)
    if FILLED:
        x = tl.where(columns < vocabulary, x, float("-inf"))
    return x


@triton.jit
def _exp(x):  # type: ignore[no-untyped-def]
    """The exponential in two instructions of a GPU; Triton's takes five, for results below 1e-38."""
    return tl.exp2(1.4426950408889634 * x)
