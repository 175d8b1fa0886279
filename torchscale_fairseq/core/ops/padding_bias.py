"""Padding that layers share, as a bias of their scores."""

import math
from dataclasses import replace
from typing import TypeVar

import torch

from .attention import AttentionMask
from .masks import known_padding

MaskT = TypeVar("MaskT", bound=AttentionMask)
ALIGNMENT = 8
"""Values by which the rows of a bias lie apart at a multiple of, or else torch's attention copies it in each layer."""


def with_padding_bias(mask: MaskT, dtype: torch.dtype) -> MaskT:
    """The mask with its padding written into a bias, once for all layers. Each would otherwise convert the padding and
    look for rows of nothing but padding: on a GPU a dozen small kernels.

    Args:
        mask: of dense attention. It stays as it is if it is causal, has a bias or documents, or if it is not known
            without the device that every row has a token.
        dtype: of the queries where nothing is autocast.
    """
    padding = mask.key_padding_mask
    known = None if padding is None else known_padding(padding)
    if padding is None or known is None or known.whole_rows or mask.causal or mask.bias is not None or mask.documents:
        return mask
    device = padding.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):  # the meta device knows neither
        dtype = torch.get_autocast_dtype(device)
    batch, length = padding.shape
    room = length + ALIGNMENT - length % ALIGNMENT
    bias = torch.zeros(batch, 1, 1, room, dtype=dtype, device=padding.device)[..., :length]
    return replace(mask, key_padding_mask=None, bias=bias.masked_fill_(padding[:, None, None], -math.inf))
