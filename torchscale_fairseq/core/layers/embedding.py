"""Embeddings of tokens and positions."""

import math

import torch
from torch import Tensor, nn

from ..ops.positions import FIRST_POSITION, PADDING_POSITION


class TextEmbedding(nn.Embedding):
    """Token embeddings drawn from N(0, 1 / width), the padding row zero."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)
        self._fill_padding_idx_with_zero()


class PositionalEmbedding(nn.Embedding):
    """A learned vector per position; rows as in ``ops.positions``, so that n rows serve n - 2 tokens."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)
        self._fill_padding_idx_with_zero()

    @property
    def max_positions(self) -> int:
        """Longest sequence, in tokens."""
        return self.num_embeddings - FIRST_POSITION


class SinusoidalPositionalEmbedding(nn.Module):
    """Fixed sines in the first half of the channels, cosines in the second.

    "Attention Is All You Need", arXiv:1706.03762, sec. 3.5, in the layout of tensor2tensor and fairseq: the
    wave lengths run from 2 pi to 10000 * 2 pi inclusive. The row of padding is zero.
    """

    table: Tensor

    def __init__(self, max_positions: int, embedding_dim: int):
        super().__init__()
        self.max_positions = max_positions
        half = embedding_dim // 2
        rates = torch.exp(torch.arange(half) * -(math.log(10000) / max(half - 1, 1)))
        angles = torch.arange(max_positions + FIRST_POSITION)[:, None] * rates
        table = nn.functional.pad(torch.cat((angles.sin(), angles.cos()), 1), (0, embedding_dim % 2))
        table[PADDING_POSITION] = 0.0
        self.register_buffer("table", table, persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """Rows of the table, (..., embedding_dim), for positions of any shape."""
        return self.table[positions]
