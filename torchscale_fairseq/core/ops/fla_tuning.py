"""Fewer candidates for fla's kernels to be tuned over, so that the first update of a training comes sooner."""

import contextlib
import functools
from typing import Any

CANDIDATES = (
    *((64, 64, 4, stages) for stages in (2, 3, 4)),
    *((32, 64, 4, 3), (32, 32, 4, 3), (32, 32, 2, 3)),
)
"""Tile of keys and values, warps and stages of the kernels of the states between chunks. Large tiles read keys and
values least often; small ones occupy the card where heads are few."""


@functools.cache
def tune_less() -> None:
    """Leave the kernels of the states only those of fla's candidates that are in ``CANDIDATES``.

    fla has 48 for each of two kernels, one of which is tuned for two dtypes. Compiling each takes one to three seconds.
    What Triton finds best is kept in its cache for later processes.
    """
    with contextlib.suppress(ImportError):
        from fla.ops.common import chunk_h

        for name in ("chunk_fwd_kernel_h", "chunk_bwd_kernel_dh"):
            _keep(getattr(getattr(chunk_h, name, None), "fn", None))


def _keep(tuner: Any) -> None:
    """Reduce the candidates of one of Triton's autotuners; anything else is left alone."""
    configs = getattr(tuner, "configs", ())
    fewer = [c for c in configs if (*map(c.kwargs.get, ("BK", "BV")), c.num_warps, c.num_stages) in CANDIDATES]
    if fewer:
        tuner.configs = fewer
