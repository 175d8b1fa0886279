"""Products of one input that a recorded step of decoding computes at the same time.

A product with the few rows of a step keeps a part of a GPU busy. While a CUDA graph is recorded, products that do not
need each other are therefore given to streams of their own, which become branches of the graph.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_SIDES = 3
_sides: list[torch.cuda.Stream] = []
"""Further streams while a step is recorded; none otherwise."""


def side_by_side(x: Tensor, *layers: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The outputs of up to four layers for one input; a recorded step computes them at the same time.

    Args:
        x: input of each layer.
        layers: they write nothing that another one reads or writes.
    """
    if not _sides:
        return [layer(x) for layer in layers]
    current, sides = torch.cuda.current_stream(), _sides[: len(layers) - 1]
    outputs = []
    for side, layer in zip(sides, layers[1:], strict=True):
        side.wait_stream(current)
        with torch.cuda.stream(side):
            outputs.append(layer(x))
    outputs.insert(0, layers[0](x))
    for side in sides:
        current.wait_stream(side)
    return outputs


@contextmanager
def with_sides() -> Iterator[None]:
    """Let ``side_by_side`` use further streams of the current device.

    What it allocates on them is used again only after they have waited for the current stream, as they do before each
    use.
    """
    _sides.extend(_streams(torch.cuda.current_device()))
    try:
        yield
    finally:
        _sides.clear()


@functools.cache
def _streams(device: int) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(_SIDES)]
