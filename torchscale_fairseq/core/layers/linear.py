"""The kinds of linear layer that a model can be made of."""

from typing import Protocol

from torch import nn


class LinearFactory(Protocol):
    """Makes the linear layers of attention, retention and feed-forward networks."""

    def __call__(self, in_features: int, out_features: int, *, bias: bool = True, activated: bool = False) -> nn.Module:
        """A layer from (..., in_features) to (..., out_features).

        Args:
            in_features, out_features: widths.
            bias: the layer has one where this kind of layer can.
            activated: a non-linearity follows.
        """


def dense(in_features: int, out_features: int, *, bias: bool = True, activated: bool = False) -> nn.Linear:
    """``nn.Linear``."""
    return nn.Linear(in_features, out_features, bias=bias)
