"""The kinds of linear layer that a model can be made of."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ..ops.projections import projections
from ..ops.side_by_side import side_by_side
from .hooked import is_plain_linear


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


def projected(x: Tensor, *layers: nn.Module) -> Sequence[Tensor]:
    """The outputs of up to four layers for one input, in the way that suits the device.

    Args:
        x: (..., width), input of each layer.
        layers: they write nothing that another one reads or writes.
    """
    if _trains_eagerly(x) and all(_is_a_product(layer, x.dtype) for layer in layers):
        return projections(x, *(layer.weight for layer in layers))  # type: ignore[arg-type]
    return side_by_side(x, *layers)


def _trains_eagerly(x: Tensor) -> bool:
    """On a GPU; compiled code adds gradients up in one kernel of its own."""
    return (
        x.is_cuda
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cuda")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def _is_a_product(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a layer multiplies by its weight and does nothing else."""
    return is_plain_linear(layer) and layer.bias is None and layer.weight.dtype == dtype
