"""Inputs of graphs: examples to trace a model with."""

from typing import NamedTuple

from torch import Tensor

BATCH, LENGTH, NEW, PAST = 2, 5, 3, 4
"""Sizes of the examples. Each is above 1, since torch.export takes 0 and 1 for fixed sizes."""
MEMORY_PADDING = "memory_padding_mask"


class Input(NamedTuple):
    """An example of a tensor that a graph takes, and the names of its axes of any size."""

    example: Tensor
    axes: dict[int, str]
