"""Parameters that autograd functions of this package save."""

from torch import Tensor


def as_result(parameter: Tensor) -> Tensor:
    """A parameter as the result of an operation. torch 2.6 passes over the hooks of one that a function itself saves,
    while its layer is recomputed (``torch.utils.checkpoint``)."""
    return parameter.view_as(parameter)
