"""Where a token stands, given the padding around it.

Position tables have TorchScale's and fairseq's layout: row 1 belongs to padding, the first token has row 2.
"""

import torch
from torch import Tensor

from .masks import Padding, is_traced, known_padding, marked

PADDING_POSITION = 1
FIRST_POSITION = 2


def absolute_positions(padding_mask: Tensor) -> Tensor:
    """Rows of the position table: real tokens count from 2, padding has 1.

    Args:
        padding_mask: (batch, seq), True for padding.

    Returns:
        (batch, seq), long.
    """
    real = ~padding_mask
    return real.cumsum(1) * real + PADDING_POSITION


def relative_positions(padding_mask: Tensor) -> Tensor:
    """Positions for schemes that use distances alone: a token's index, not counting padding inside the row.

    They agree with plain indices wherever padding stands only before or only after the tokens, so that keys
    that were cached under plain indices stay valid.

    Args:
        padding_mask: (batch, seq), True for padding.

    Returns:
        (batch, seq), long.
    """
    real = ~padding_mask
    seen = real.cumsum(1)
    leading = (seen == 0).sum(1, keepdim=True)
    return (leading + seen - 1).clamp_min(0)


def has_padding_before_tokens(padding_mask: Tensor) -> bool:
    """Whether some real token stands right of padding, so that a causal token could see padding. True while tensors
    have no values to be read. Waits for the device, unless that is known."""
    known = known_padding(padding_mask)
    if known is not None:
        return known.before_tokens
    return is_traced() or bool((padding_mask[:, :-1] & ~padding_mask[:, 1:]).any())


def has_padding_inside(padding_mask: Tensor) -> bool:
    """Whether padding stands between real tokens of a row. True while tensors have no values to be read. Waits for the
    device, unless that is known."""
    known = known_padding(padding_mask)
    if known is not None:
        return known.inside
    if is_traced():
        return True
    real = ~padding_mask
    starts = real & torch.nn.functional.pad(padding_mask[:, :-1], (1, 0), value=True)
    return bool((starts.sum(1) > 1).any())


def padding_of(padding_mask: Tensor) -> Padding:
    """The properties of a mask, (batch, seq), True for padding. Waits for the device that it lies on."""
    if marked(padding_mask) is None:
        return Padding()
    before_tokens = has_padding_before_tokens(padding_mask)
    inside = before_tokens and has_padding_inside(padding_mask)
    return Padding(True, before_tokens, inside, whole_rows=bool(padding_mask.all(1).any()))
