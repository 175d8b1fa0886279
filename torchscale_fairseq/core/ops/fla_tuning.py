"""Fewer candidates for fla's kernels to be tuned over, so that the first update of a training comes sooner."""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

TILES_OF_STATES = ((64, 64, 4, 3), (32, 64, 4, 3), (32, 32, 2, 3))
"""Tile of keys and values, warps and stages. The first is the fastest on an H200 with heads of 256 and 432 channels;
small tiles occupy the card where heads are few."""
TILE_OF_CHUNKS = (4, 2)
"""Warps and stages; likewise."""
SIDES_OF_CHUNKS = {"chunk_bwd_kernel_dqkwg": (128, 64), "chunk_bwd_kernel_dv": (64, 128)}
"""Tile of keys and values with which, in half precision, hardly a register is spilled on a Hopper GPU, and two or
three programs share a processor; tiles of 128 by 128 leave room for one, which spills."""
CANDIDATES: dict[str, tuple[tuple[int | None, ...], ...]] = {
    "chunk_fwd_kernel_h": TILES_OF_STATES,
    "chunk_bwd_kernel_dh": TILES_OF_STATES,
    "chunk_bwd_kernel_dqkwg": ((None, None, *TILE_OF_CHUNKS),),
    "chunk_bwd_kernel_dv": ((None, None, *TILE_OF_CHUNKS),),
}
"""Tile of keys and values (None where the kernel's caller sets it), warps and stages, by kernel."""


@functools.cache
def tune_less() -> None:
    """Leave fla's kernels of retention only those of their candidates that are in ``CANDIDATES``.

    fla has 48 for each of the two kernels of the states, and six for those of chunks, each of which takes two to three
    seconds to compile. Triton keeps what it finds best in its cache for later processes.
    """
    with contextlib.suppress(ImportError):
        from fla.ops.common import chunk_h, chunk_o

        for module in (chunk_h, chunk_o):
            for kernel, candidates in CANDIDATES.items():
                _keep(inner(getattr(module, kernel, None)), candidates)


def _keep(tuner: Any, candidates: tuple[tuple[int | None, ...], ...]) -> None:
    """Reduce the candidates of one of Triton's autotuners; anything else is left alone."""
    fewer = [c for c in candidates_of(tuner) if (*_tile(c.kwargs), c.num_warps, c.num_stages) in candidates]
    if fewer:
        tuner.configs = fewer


def inner(kernel: Any) -> Any:
    """The tuner, heuristics or kernel that one of Triton's wrappers holds; None of anything else."""
    return getattr(kernel, "fn", None)


def candidates_of(tuner: Any) -> Sequence[Any]:
    """The settings among which one of Triton's autotuners chooses; none of anything else."""
    return getattr(tuner, "configs", ())


def _tile(given: Mapping[str, int]) -> tuple[int | None, int | None]:
    return given.get("BK"), given.get("BV")
