"""Adam for parameters in half precision with copies in float32, in one launch for many parameters.

A pass over memory reads the gradient in half precision and the copy with its two averages, and writes these three and
the parameter: 28 bytes an entry. Separate kernels convert the gradient to float32 and the copy back to half precision,
and move 44.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

BLOCK, WARPS = 2048, 8
"""Entries that a program updates, and its warps."""
DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
BYTES_AT_ONCE = 16
"""That a thread loads or stores, where every tensor begins at a multiple of them."""


@dataclass(frozen=True)
class Rates:
    """Numbers by which an update of Adam multiplies, and which it adds."""

    beta1: float
    beta2: float
    decay: float
    """Share of each weight taken off."""
    step: float
    """Factor on the average of gradients over the root of that of their squares, which is ``eps`` larger."""
    eps: float


def update_from_halves(
    halves: Sequence[Tensor],
    copies: Sequence[Tensor],
    averages: Sequence[Tensor],
    squares: Sequence[Tensor],
    rates: Rates,
    scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Update parameters by their gradients.

    Args:
        halves: parameters of one half-precision dtype and device, with gradients; contiguous, like all others.
        copies, averages, squares: their values, and the averages of gradients and of squares, in float32.
        rates: of this update.
        scale: a scalar that gradients are divided by, float32.
        found_inf: a scalar; where it is not 0, nothing changes.
    """
    sizes = np.fromiter(map(Tensor.numel, halves), np.int64, len(halves))
    rows = _addresses(halves, copies, averages, squares)
    aligned = (rows % BYTES_AT_ONCE == 0).all(1) & (sizes % (BYTES_AT_ONCE // 2) == 0)
    for all_aligned, chosen in ((True, aligned), (False, ~aligned)):
        if chosen.any():
            _launch(sizes[chosen], rows[chosen], halves[0], rates, scale, found_inf, aligned=all_aligned)


def _addresses(halves: Sequence[Tensor], *others: Sequence[Tensor]) -> NDArray[np.int64]:
    """(parameters, 2 + others): where each parameter, its gradient and the others of it begin."""
    gradients = [half.grad for half in halves if half.grad is not None]
    columns = [list(map(Tensor.data_ptr, tensors)) for tensors in (halves, gradients, *others)]
    return np.array(columns, np.int64).T


def _launch(
    sizes: NDArray[np.int64],
    rows: NDArray[np.int64],
    half: Tensor,
    rates: Rates,
    scale: Tensor | None,
    found_inf: Tensor | None,
    *,
    aligned: bool,
) -> None:
    """Update parameters of these sizes, whose tensors begin at these addresses."""
    owners, firsts, numbers = _blocks(sizes.tobytes(), half.device)
    addresses = _table(rows.tobytes(), half.device)
    with torch.cuda.device_of(half):
        _kernel[(len(owners),)](
            owners,
            firsts,
            numbers,
            addresses,
            scale,
            found_inf,
            rates.beta1,
            1 - rates.beta1,
            rates.beta2,
            1 - rates.beta2,
            rates.decay,
            rates.step,
            rates.eps,
            HALF=DTYPES[half.dtype],
            ALIGNED=aligned,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )


@lru_cache(maxsize=64)
def _blocks(sizes: bytes, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Per program the parameter it updates a block of, int32; per parameter its first program and its entries."""
    numbers = torch.frombuffer(bytearray(sizes), dtype=torch.int64)
    counts = (numbers + BLOCK - 1) // BLOCK
    owners = torch.repeat_interleave(torch.arange(len(numbers), dtype=torch.int32), counts)
    return _sent(owners, device), _sent(counts.cumsum(0) - counts, device), _sent(numbers, device)


@lru_cache(maxsize=64)
def _table(addresses: bytes, device: torch.device) -> Tensor:
    """The addresses on the device. Gradients of recorded updates stay where they are."""
    return _sent(torch.frombuffer(bytearray(addresses), dtype=torch.int64), device)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device, for which the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    owners,
    firsts,
    numbers,
    addresses,
    scale,
    found_inf,
    beta1,
    rest1,
    beta2,
    rest2,
    decay,
    step,
    eps,
    HALF: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    start = (program - tl.load(firsts + owner)) * BLOCK
    left = tl.load(numbers + owner) - start
    addresses += 5 * owner
    half = tl.load(addresses).to(tl.pointer_type(HALF)) + start
    gradient = tl.load(addresses + 1).to(tl.pointer_type(HALF)) + start
    copy = tl.load(addresses + 2).to(tl.pointer_type(tl.float32)) + start
    average = tl.load(addresses + 3).to(tl.pointer_type(tl.float32)) + start
    square = tl.load(addresses + 4).to(tl.pointer_type(tl.float32)) + start
    if ALIGNED:
        left = tl.multiple_of(left, 8)
        copy, average, square = tl.multiple_of(copy, 16), tl.multiple_of(average, 16), tl.multiple_of(square, 16)
        half, gradient = tl.multiple_of(half, 16), tl.multiple_of(gradient, 16)

    columns = tl.arange(0, BLOCK)
    inside = columns < left
    g = tl.load(gradient + columns, mask=inside, other=0.0).to(tl.float32)
    if scale is not None:
        g /= tl.load(scale)
    p = tl.load(copy + columns, mask=inside, other=0.0)
    m = beta1 * tl.load(average + columns, mask=inside, other=0.0) + rest1 * g
    v = beta2 * tl.load(square + columns, mask=inside, other=0.0) + rest2 * g * g
    p -= decay * p
    p -= step * m / (tl.sqrt(v) + eps)
    kept = left
    if found_inf is not None:
        kept = tl.where(tl.load(found_inf) == 0, left, 0)
    if ALIGNED:
        kept = tl.multiple_of(kept, 8)
    inside = columns < kept
    tl.store(average + columns, m, mask=inside)
    tl.store(square + columns, v, mask=inside)
    tl.store(copy + columns, p, mask=inside)
    tl.store(half + columns, p.to(HALF), mask=inside)
