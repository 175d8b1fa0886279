"""T5's relative position bias (arXiv:1910.10683, sec. 2.1)."""

import torch
from torch import Tensor, nn

from ...core.layers.relative_position import relative_position_bucket


class RelativePositionBias(nn.Module):
    """One learned scalar per head and bucket of distances.

    Args:
        bidirectional: whether later keys have buckets of their own.
        num_buckets: in all.
        max_distance: from which on all keys share a bucket.
        n_heads: heads.
    """

    def __init__(self, bidirectional: bool = True, num_buckets: int = 32, max_distance: int = 128, n_heads: int = 12):
        super().__init__()
        self.bidirectional = bidirectional
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.n_heads = n_heads
        self.relative_attention_bias = nn.Embedding(num_buckets, n_heads)

    @staticmethod
    def _relative_position_bucket(
        relative_position: Tensor, bidirectional: bool = True, num_buckets: int = 32, max_distance: int = 128
    ) -> Tensor:
        return relative_position_bucket(
            relative_position, bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance
        )

    def compute_bias(self, qlen: int, klen: int, step: int | None = None) -> Tensor:
        """(1, heads, qlen, klen); queries begin at position ``step``."""
        device = self.relative_attention_bias.weight.device
        queries = torch.arange(qlen, device=device)[:, None] + (step or 0)
        relative = torch.arange(klen, device=device)[None] - queries
        buckets = self._relative_position_bucket(relative, self.bidirectional, self.num_buckets, self.max_distance)
        bias: Tensor = self.relative_attention_bias(buckets)
        return bias.permute(2, 0, 1)[None]

    def forward(self, batch_size: int, qlen: int, klen: int, step: int | None = None) -> Tensor:
        """(batch * heads, qlen, klen)."""
        return self.compute_bias(qlen, klen, step).repeat(batch_size, 1, 1, 1).flatten(0, 1)
