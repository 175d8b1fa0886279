"""T5's relative position bias.

"Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", arXiv:1910.10683,
sec. 2.1: one learned scalar per head and bucket of distances, added to the scores.
"""

import math

import torch
from torch import Tensor, nn


def relative_position_bucket(
    relative_position: Tensor, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> Tensor:
    """Bucket of a distance: the nearer half one by one, the farther half in logarithmic steps.

    Args:
        relative_position: key position minus query position, long, any shape.
        bidirectional: split the buckets between the two directions; else later keys share bucket 0.
        num_buckets: buckets in all.
        max_distance: tokens from which on all keys share the last bucket.
    """
    distance = -relative_position
    bucket = torch.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        bucket = (distance < 0) * num_buckets
        distance = distance.abs()
    else:
        distance = distance.clamp_min(0)
    exact = num_buckets // 2
    steps = torch.log(distance.clamp_min(1).float() / exact) / math.log(max_distance / exact) * (num_buckets - exact)
    far = (exact + steps.long()).clamp_max(num_buckets - 1)
    return bucket + torch.where(distance < exact, distance, far)


class RelativePositionBias(nn.Module):
    """The bias as a function of the positions of queries and keys."""

    def __init__(self, num_heads: int, *, bidirectional: bool, num_buckets: int, max_distance: int):
        super().__init__()
        self.bidirectional = bidirectional
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.relative_attention_bias = nn.Embedding(num_buckets, num_heads)

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Bias on the scores.

        Args:
            query_positions: (batch or 1, query_length), tokens.
            key_positions: (batch or 1, key_length), tokens.

        Returns:
            (batch or 1, heads, query_length, key_length).
        """
        bucket = relative_position_bucket(
            key_positions[:, None, :] - query_positions[:, :, None],
            bidirectional=self.bidirectional,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
        )
        return self.relative_attention_bias(bucket).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        direction = "bidirectional" if self.bidirectional else "causal"
        return f"{direction}, max_distance={self.max_distance}"
