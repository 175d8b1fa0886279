"""Decays, positions and scales of retention, in float32 at least whatever the model's dtype.

"Retentive Network", arXiv:2307.08621, sec. 2.1 and 2.2.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .xpos import rotate_both


def log_decays(heads: int, kind: str, device: torch.device | None = None) -> Tensor:
    """Natural log of each head's decay gamma, (heads,), float64.

    Args:
        heads: how many.
        kind: "powers", gamma = 1 - 2 ** (-5 - head) (eq. 8), or "linspace", 1 - gamma from 1/32 to 1/512 in equal
            ratios, which the paper's experiments have.
    """
    if kind == "linspace":
        rates = torch.linspace(math.log(1 / 32), math.log(1 / 512), heads, dtype=torch.float64, device=device).exp()
    else:
        rates = 2.0 ** (-5 - torch.arange(heads, dtype=torch.float64, device=device))
    return torch.log1p(-rates)


def token_counts(
    length: int,
    seen: Tensor,
    *,
    padding_mask: Tensor | None = None,
    document_starts: Tensor | None = None,
) -> Tensor:
    """How many tokens of its document each token is the last of, itself included.

    Args:
        length: tokens.
        seen: (batch or 1,), long; tokens of the current document before the first.
        padding_mask, document_starts: (batch, seq), as for retention.

    Returns:
        (batch or 1, seq), long; 0 for padding before the first token.
    """
    if padding_mask is None:
        real = torch.ones(1, length, dtype=torch.long, device=seen.device)
    else:
        real = (~padding_mask).long()
    counts = real.cumsum(1)
    if document_starts is None:
        return counts + seen[:, None]
    before = torch.where(document_starts, counts - real, -seen[:, None])
    return counts - before.cummax(1).values


@dataclass(frozen=True)
class RetentionTables:
    """Rotation and scale of queries and keys: cosines and sines, (batch or 1, seq, heads or 1, key_dim / 2)."""

    query: tuple[Tensor, Tensor]
    key: tuple[Tensor, Tensor]
    rows: Tensor | None = None
    """(batch, seq), which token of the only row of the tables each token is rotated as; None for its own."""

    def rotate(self, query: Tensor, key: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Rotate and scale queries and keys, (batch, seq, heads, key_dim), into this dtype; by default the tables'."""
        return rotate_both(query, key, self.query, self.key, dtype, self.rows)


def retention_tables(
    counts: Tensor,
    log_decay: Tensor,
    key_dim: int,
    *,
    dtype: torch.dtype,
    inclusive: bool,
    largest: int | None = None,
    hidden: Tensor | None = None,
) -> RetentionTables:
    """Tables for one forward pass; every layer shares them.

    Keys are scaled by key_dim ** -0.5 and queries by the square root of the sum of the decays of the tokens they
    see, the first two of the paper's score normalisations (sec. 2.4). Both are the same in all forms.

    Args:
        counts: (batch or 1, seq), as from ``token_counts``.
        log_decay: (heads,).
        key_dim: channels of a head, even.
        dtype: of the model.
        largest: of the counts, where it is known; one table for all rows is read faster than one for each.
        hidden: (batch, seq), True for padding, whose keys become zeros: no token sees them.
        inclusive: angles from 1 down to 1 / 10000 inclusive, as in TorchScale's code, in place of RoPE's.
    """
    if largest is not None:
        all_counts = torch.arange(1, largest + 2, device=counts.device).unsqueeze(0)
        last = all_counts > largest
        tables = retention_tables(all_counts, log_decay, key_dim, dtype=dtype, inclusive=inclusive, hidden=last)
        rows = counts.clamp_min(1) - 1
        return replace(tables, rows=rows if hidden is None else rows.masked_fill(hidden, largest))
    wide = torch.promote_types(dtype, torch.float32)
    pairs = key_dim // 2
    exponents = torch.arange(pairs, dtype=wide, device=counts.device) / (max(pairs - 1, 1) if inclusive else pairs)
    counts = counts.clamp_min(1)[..., None, None].to(wide)
    angles = (counts - 1) * 10000**-exponents
    cos, sin = angles.cos(), angles.sin()
    log_decay = log_decay.to(wide)[:, None]
    decay_sum = torch.expm1(counts * log_decay) / torch.expm1(log_decay)
    query_scale, scale = decay_sum.rsqrt(), key_dim**-0.5
    key_scale = scale if hidden is None else scale * (~hidden)[..., None, None].to(wide)
    return RetentionTables((cos * query_scale, sin * query_scale), (cos * key_scale, sin * key_scale))
