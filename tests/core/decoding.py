"""Padding masks, and decoding in steps."""

from typing import Any

import torch
from torch import Tensor, nn


def mask_of(lengths: list[int], total: int, side: str) -> Tensor:
    """Padding mask of rows of given lengths."""
    index = torch.arange(total)
    real = torch.tensor(lengths)[:, None]
    return index >= real if side == "right" else index < total - real


def stepped(model: nn.Module, target: Tensor, first: int, mask: Tensor | None = None, **kwargs: object) -> Tensor:
    """Logits of a prompt of ``first`` tokens, then of chunks of 1 and 2 tokens."""
    state: dict[str, Any] = {}
    outputs, end = [], 0
    while end < target.size(1):
        end = first if end == 0 else min(end + 1 + end % 2, target.size(1))
        part = None if mask is None else mask[:, :end]
        outputs.append(model(target[:, :end], part, incremental_state=state, **kwargs)[0])
    return torch.cat(outputs, 1)


def single_steps(model: nn.Module, target: Tensor, first: int = 1, mask: Tensor | None = None) -> Tensor:
    """Logits of a prompt of ``first`` tokens, then of three single tokens and a chunk of two in turns."""
    state: dict = {}
    outputs, end = [], 0
    for number in range(target.size(1)):
        start, end = end, min(end + (2 if number % 4 == 0 else 1), target.size(1)) if end else first
        part = None if mask is None else mask[:, :end]
        if end > start:
            outputs.append(model(target[:, :end], self_attn_padding_mask=part, incremental_state=state)[0])
    return torch.cat(outputs, 1)
