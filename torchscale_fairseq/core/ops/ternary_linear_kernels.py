"""The kernel of ``ternary_linear``, one launch from the input to the product.

Each program normalises and rounds one row of the input, which all programs of that row repeat, and multiplies it by
OUTPUTS rows of the weights. Products and sums of the whole numbers are int32 and thus exact in any order.
"""

from typing import Sequence  # noqa: UP035 - torch 2.6 knows typing's alone in signatures of operators

import triton
import triton.language as tl
from torch import Tensor

from .compiled_kernel import compiled_kernel

CHUNK = tl.constexpr(512)
"""Bytes of a row of weights that a program reads at a time."""
FEW, MANY = 8, 16
"""Rows of weights of a program, for at most ``WIDE`` of them and for more."""
WIDE = 4096
"""Rows of weights above which ``FEW`` at a time make more programs than a GPU runs at once."""
MOST_LAYERS = 3
"""Layers of one launch."""


def _products(
    x: Tensor,
    norm: Sequence[Tensor],
    packed: Sequence[Tensor],
    scale: Sequence[Tensor],
    eps: float,
    low: int,
    largest: int,
    smallest: float,
) -> Tensor:
    return x.new_empty(len(packed), x.size(0), packed[0].size(0))


@compiled_kernel(_products)
def multiply_ternary(
    x: Tensor,
    norm: Sequence[Tensor],
    packed: Sequence[Tensor],
    scale: Sequence[Tensor],
    eps: float,
    low: int,
    largest: int,
    smallest: float,
) -> Tensor:
    """Normalise rows by each layer's RMSNorm, round them to whole numbers and multiply them by its packed weights.

    Args:
        x: (rows, in), contiguous.
        norm: (in,), the weights of each layer's RMSNorm.
        packed: uint8, (out, bytes), contiguous, of each layer, as ``quantization.pack`` returns them.
        scale: one number, that of each layer's weights.
        eps: added to the mean square.
        low, largest: as ``quantization.LIMITS``.
        smallest: the least scale of a row.

    Returns:
        (layers, rows, out), in the dtype of x.
    """
    (rows, width), (outputs, length), layers = x.shape, packed[0].shape, len(packed)
    result = x.new_empty(layers, rows, outputs)
    parameters = list(zip(norm, packed, scale, strict=True))
    parameters += parameters[-1:] * (MOST_LAYERS - layers)
    at_once = FEW if layers * outputs <= WIDE else MANY
    _multiply[triton.cdiv(outputs, at_once), rows, layers](
        x,
        result,
        *(tensor for one in parameters for tensor in one),
        rows,
        outputs,
        eps,
        low,
        largest,
        smallest,
        WIDTH=width,
        BYTES=length,
        BLOCK=triton.next_power_of_2(width),
        OUTPUTS=at_once,
        LAYERS=layers,
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


@triton.jit  # type: ignore[untyped-decorator]
def _multiply_one(  # type: ignore[no-untyped-def]
    x,
    result,
    norm,
    packed,
    scale,
    outputs,
    eps,
    low,
    largest,
    smallest,
    WIDTH: tl.constexpr,
    BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """The product of the row at x, some of its columns, to the row at result."""
    output = tl.program_id(0).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
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
    tl.store(result + output, product.to(result.dtype.element_ty), mask=output < outputs)


# Bytes that are read one by one are laid out over threads as columns are, and these then need no exchange.
@triton.jit(do_not_specialize_on_alignment=["packed", "packed1", "packed2"])  # type: ignore[untyped-decorator]
def _multiply(  # type: ignore[no-untyped-def]
    x,
    result,
    norm,
    packed,
    scale,
    norm1,
    packed1,
    scale1,
    norm2,
    packed2,
    scale2,
    rows,
    outputs,
    eps,
    low,
    largest,
    smallest,
    WIDTH: tl.constexpr,
    BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
    OUTPUTS: tl.constexpr,
    LAYERS: tl.constexpr,
):
    row, layer = tl.program_id(1).to(tl.int64), tl.program_id(2)
    x += row * WIDTH
    result += (layer * rows + row) * outputs
    if layer == 0:
        _multiply_one(
            x, result, norm, packed, scale, outputs, eps, low, largest, smallest, WIDTH, BYTES, BLOCK, OUTPUTS
        )
    if LAYERS > 1:  # noqa: SIM102 - a constant condition leaves code out, and must stand by itself
        if layer == 1:
            _multiply_one(
                x, result, norm1, packed1, scale1, outputs, eps, low, largest, smallest, WIDTH, BYTES, BLOCK, OUTPUTS
            )
    if LAYERS > 2:  # noqa: SIM102 - a constant condition leaves code out, and must stand by itself
        if layer == 2:
            _multiply_one(
                x, result, norm2, packed2, scale2, outputs, eps, low, largest, smallest, WIDTH, BYTES, BLOCK, OUTPUTS
            )
