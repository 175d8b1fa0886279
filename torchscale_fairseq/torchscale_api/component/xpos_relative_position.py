"""xPos, with positions around the middle of the sequence (arXiv:2212.10554)."""

import torch
from torch import Tensor, nn


def fixed_pos_embedding(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sines and cosines (seq, dim) for x of that shape."""
    length, dim = x.shape
    frequencies = 10000 ** (-torch.arange(dim, dtype=torch.float32, device=x.device) / dim)
    angles = torch.arange(length, dtype=torch.float32, device=x.device)[:, None] * frequencies
    return angles.sin(), angles.cos()


def rotate_every_two(x: Tensor) -> Tensor:
    """Each pair (a, b) of neighbouring channels to (-b, a)."""
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def duplicate_interleave(m: Tensor) -> Tensor:
    """(seq, dim) to (seq, 2 * dim), each column twice."""
    return m.repeat_interleave(2, -1)


def apply_rotary_pos_emb(x: Tensor, sin: Tensor, cos: Tensor, scale: float | Tensor = 1) -> Tensor:
    """Turn pairs of channels by angles, scaled."""
    sin, cos = duplicate_interleave(sin * scale), duplicate_interleave(cos * scale)
    return x * cos + rotate_every_two(x) * sin


class XPOS(nn.Module):
    """Rotates queries or keys, and scales them so that scores decay with distance.

    Args:
        head_dim: channels of a head.
        scale_base: tokens over which scores decay by their factor.
    """

    scale: Tensor

    def __init__(self, head_dim: int, scale_base: int = 512):
        super().__init__()
        self.head_dim = head_dim
        self.scale_base = scale_base
        self.register_buffer("scale", (torch.arange(0, head_dim, 2) + 0.4 * head_dim) / (1.4 * head_dim))

    def forward(self, x: Tensor, offset: int = 0, downscale: bool = False) -> Tensor:
        """(rows, seq, head_dim) to the same shape.

        Args:
            x: queries, or keys with ``downscale``.
            offset: tokens before the first.
        """
        length = x.size(1)
        first = -(length + offset) // 2
        powers = torch.arange(first, first + length + offset, device=x.device) / self.scale_base
        scale = self.scale.float() ** powers.float()[:, None]
        sin, cos = fixed_pos_embedding(scale)
        sin, cos, scale = sin[-length:], cos[-length:], scale[-length:]
        return apply_rotary_pos_emb(x.float(), sin, cos, 1 / scale if downscale else scale).to(x.dtype)
