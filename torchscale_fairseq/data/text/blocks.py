"""Cutting text into samples, by fairseq's break modes, from the index alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

BREAK_MODES = ("none", "complete", "complete_doc", "eos")

BLOCK = np.dtype(
    [("first", "<i8"), ("units", "<i4"), ("byte", "<i8"), ("bytes", "<i4"), ("skip", "<i4"), ("size", "<i4")]
)
"""A sample: its first unit and their number, the bytes that they take, and of their tokens, how many come before the
sample's and how many are the sample's."""


def cut(units: NDArray[Any], capacity: int, mode: str, *, room_for_bos: bool = False) -> NDArray[Any]:
    """The samples of a run of units.

    Args:
        units: whole lines, as in the index.
        capacity: tokens of a sample at most.
        room_for_bos: leave room in a sample for one token in front of each document.
        mode: none fills each sample, cutting lines; complete takes as many whole lines as fit; complete_doc the
            same, but a sample ends where a document does; eos takes one line. A line above the capacity is cut into
            equal samples in any mode. Empty lines end documents and have no tokens.

    Returns:
        Rows of :data:`BLOCK`, relative to the first unit. Every token is in exactly one.
    """
    from fairseq.data.token_block_utils_fast import _get_slice_indices_fast

    begins = _begins_document(units) if room_for_bos else np.zeros(len(units), dtype=np.bool_)
    ends_of_units = np.cumsum(units["tokens"] + begins, dtype=np.int64)
    starts_of_units = np.concatenate(([0], ends_of_units[:-1]))
    sizes = np.diff(ends_of_units[units["ends"]], prepend=0)
    if not sizes.any():
        return np.zeros(0, BLOCK)
    if mode != "complete_doc":
        sizes = sizes[sizes > 0]
    if mode != "none":
        sizes = _shortened(sizes, capacity)
    slices = _get_slice_indices_fast(sizes, mode, capacity, 0)
    start, stop = slices[:, 0], slices[:, 1]
    first = np.searchsorted(ends_of_units, start, side="right")
    last = np.searchsorted(ends_of_units, stop, side="left")
    ends_of_bytes = np.cumsum(units["bytes"], dtype=np.int64)
    blocks = np.zeros(len(slices), BLOCK)
    blocks["first"], blocks["units"] = first, last + 1 - first
    blocks["byte"] = ends_of_bytes[first] - units["bytes"][first]
    blocks["bytes"] = ends_of_bytes[last] - blocks["byte"]
    room_before, room_inside = np.searchsorted(starts_of_units[begins], (start, stop))
    blocks["skip"] = np.maximum(0, start - starts_of_units[first] - begins[first])
    blocks["size"] = stop - start - (room_inside - room_before)
    return blocks


def document_starts(units: NDArray[Any]) -> NDArray[np.int64]:
    """First tokens of the documents of a run of units after the first document, counted from the run's first token."""
    begins = _begins_document(units)
    return (np.cumsum(units["tokens"], dtype=np.int64) - units["tokens"])[begins]


def _begins_document(units: NDArray[Any]) -> NDArray[np.bool_]:
    """Which units are the first with tokens after an empty line."""
    texts = np.flatnonzero(units["tokens"])
    empty_lines = np.cumsum(units["ends"] & (units["tokens"] == 0))[texts]
    begins = np.zeros(len(units), dtype=np.bool_)
    begins[texts] = np.diff(empty_lines, prepend=empty_lines[:1]) > 0
    return begins


def _shortened(sizes: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """The sizes with each one above the capacity divided into as few and as equal parts as possible."""
    parts = np.maximum(1, -(-sizes // capacity))
    if len(sizes) == parts.sum():
        return sizes
    place = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    return np.repeat(sizes // parts, parts) + (place < np.repeat(sizes % parts, parts))
