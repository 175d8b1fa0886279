"""Multiway: a module of its own for each of two modalities.

BEiT-3, arXiv:2208.10442, sec. 2.1. Positions before the split belong to modality A, the others to B.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

ALL_A = -1


class Multiway(nn.Module):
    """Two modules, ``A`` and ``B``, of one shape unless ``make_b`` says otherwise."""

    def __init__(self, make: Callable[[], nn.Module], make_b: Callable[[], nn.Module] | None = None):
        super().__init__()
        self.A = make()
        self.B = (make_b or make)()

    def forward(self, x: Tensor, split_position: int = ALL_A) -> Tensor:
        """Apply A to x[:, :split_position] and B to the rest.

        Args:
            x: (batch, seq, width).
            split_position: tokens of modality A; -1 where all are A.
        """
        if split_position == ALL_A:
            return self.A(x)
        if split_position == 0:
            return self.B(x)
        return torch.cat((self.A(x[:, :split_position]), self.B(x[:, split_position:])), 1)


def single_or_multiway(multiway: bool, make: Callable[[], nn.Module]) -> nn.Module:
    """The module that ``make`` returns, twice for multiway models."""
    return Multiway(make) if multiway else make()


def at_split(module: nn.Module, split_position: int | None) -> Callable[[Tensor], Tensor]:
    """A module that may be multiway as a function of its input alone."""
    if isinstance(module, Multiway):
        return partial(module, split_position=ALL_A if split_position is None else split_position)
    return module


def apply(module: nn.Module, x: Tensor, split_position: int | None) -> Tensor:
    """Call a module that may be multiway."""
    return at_split(module, split_position)(x)
