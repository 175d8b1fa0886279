"""The kernel of ``ternary_linear``, one launch from the input to the product.

Each program normalises and rounds one row of the input, which all programs of that row repeat, and multiplies it by
OUTPUTS rows of the weights. Products and sums of the whole numbers are int32 and thus exact in any order.
"""

import triton
import triton.language as tl
from torch import Tensor

from .compiled_kernel import compiled_kernel

CHUNK = 512
"""Bytes of a row of weights that a program reads at a time."""
FEW, MANY = 8, 16
"""Rows of weights of a program, for at most ``WIDE`` of them and for more."""
WIDE = 4096
"""Rows of weights above which ``FEW`` at a time make more programs than a GPU runs at once."""


def _products(
    x: Tensor, norm: Tensor, eps: float, packed: Tensor, scale: Tensor, low: int, largest: int, smallest: float
) -> Tensor:
    return x.new_empty(x.size(0), packed.size(0))


@compiled_kernel(_products)
def multiply(
    x: Tensor, norm: Tensor, eps: float, packed: Tensor, scale: Tensor, low: int, largest: int, smallest: float
) -> Tensor:
    """Normalise rows by RMSNorm, round them to whole numbers and multiply them by packed ternary weights.

    Args:
        x: (rows, in), contiguous.
        norm: (in,), the weights of RMSNorm.
        eps: added to the mean square.
        packed: uint8, (out, bytes), contiguous, as ``quantization.pack`` returns them.
        scale: one number, that of the weights.
        low, largest: as ``quantization.LIMITS``.
        smallest: the least scale of a row.

    Returns:
        (rows, out), in the dtype of x.
    """
    (rows, width), outputs = x.shape, len(packed)
    result = x.new_empty(rows, outputs)
    at_once = FEW if outputs <= WIDE else MANY
    _multiply[triton.cdiv(outputs, at_once), rows](
        x,
        norm,
        packed,
        scale,
        result,
        outputs,
        eps,
        low,
        largest,
        smallest,
        WIDTH=width,
        BYTES=packed.size(1),
        BLOCK=triton.next_power_of_2(width),
        OUTPUTS=at_once,
        CHUNK=CHUNK,
        num_warps=8,
    )
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _whole(x, norm, column, over_scale, low, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Columns of the row as whole numbers; zeros outside. Adding 1.5 * 2^23 rounds half to even, into the last bits."""
    inside = column < WIDTH
    value = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
    value *= tl.load(norm + column, mask=inside, other=0.0).to(tl.float32) * over_scale
    whole = (value + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
    return tl.minimum(tl.maximum(whole, low), 127)


@triton.jit  # type: ignore[untyped-decorator]
def _add_products(total, weights, x, norm, byte, over_scale, low, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add the products of five columns with the five weights of each byte.

    A byte less 121 is a number in balanced base 3, whose digits are the weights. Rounding its quotient by 3^d gives
    q_d = sum_(i >= d) weight_i 3^(i - d), hence weight_d = q_d - 3 q_(d + 1), and the sum of x_d weight_d is that of
    (x_d - 3 x_(d - 1)) q_d. Quotients are products and shifts, exact for each byte below 243.
    """
    column = 5 * byte
    x0 = _whole(x, norm, column, over_scale, low, WIDTH)
    x1 = _whole(x, norm, column + 1, over_scale, low, WIDTH)
    x2 = _whole(x, norm, column + 2, over_scale, low, WIDTH)
    x3 = _whole(x, norm, column + 3, over_scale, low, WIDTH)
    x4 = _whole(x, norm, column + 4, over_scale, low, WIDTH)
    w = weights.to(tl.int32)
    total += (w - 121) * x0[None, :]
    total += ((w * 171 - 40 * 512) >> 9) * (x1 - 3 * x0)[None, :]
    total += ((w * 57 - 13 * 512) >> 9) * (x2 - 3 * x1)[None, :]
    total += ((w * 19 - 4 * 512) >> 9) * (x3 - 3 * x2)[None, :]
    total += ((w * 203 - 16384) >> 14) * (x4 - 3 * x3)[None, :]
    return total


# Bytes that are read one by one are laid out over threads as columns are, and these then need no exchange.
@triton.jit(do_not_specialize_on_alignment=["packed"])  # type: ignore[untyped-decorator]
def _multiply(  # type: ignore[no-untyped-def]
    x,
    norm,
    packed,
    scale,
    result,
    outputs,
    eps,
    low,
    largest,
    smallest,
    WIDTH: tl.constexpr,
    BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    output = tl.program_id(0).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.program_id(1).to(tl.int64)
    x += row * WIDTH
    byte = tl.arange(0, CHUNK)
    exists = (output < outputs)[:, None]
    source = packed + output[:, None] * BYTES + byte[None, :]
    # Two chunks are on their way while the row is read: waiting for memory takes longer than the products do.
    weights = tl.load(source, mask=exists & (byte < BYTES)[None, :], other=121)
    next_weights = tl.load(source + CHUNK, mask=exists & (byte + CHUNK < BYTES)[None, :], other=121)
    unit_of_weights = tl.load(scale).to(tl.float32)

    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    given = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
    weighted = given * tl.load(norm + column, mask=inside, other=0.0).to(tl.float32)
    over_deviation = 1 / tl.sqrt(tl.sum(given * given, 0) / WIDTH + eps)
    unit = tl.max(tl.abs(weighted), 0) * over_deviation / largest
    unit = tl.where(unit < smallest, smallest, unit)  # tl.maximum would drop NaN

    total = tl.zeros((OUTPUTS, CHUNK), tl.int32)
    for start in range(0, BYTES, CHUNK):
        ahead = start + 2 * CHUNK
        after_next = tl.load(source + ahead, mask=exists & (byte + ahead < BYTES)[None, :], other=121)
        total = _add_products(total, weights, x, norm, byte + start, over_deviation / unit, low, WIDTH)
        weights, next_weights = next_weights, after_next
    product = tl.sum(total, 1).to(tl.float32) * (unit * unit_of_weights)
    tl.store(result + row * outputs + output, product.to(result.dtype.element_ty), mask=output < outputs)
