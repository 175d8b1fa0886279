"""Layers that a caller has changed, whose work other code may not take over."""

from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.nn.modules import module as modules


def is_hooked(layer: nn.Module) -> bool:
    """Whether a call of a layer does more than, or something other than, the forward of its class.

    Code that reads the weights of such a layer, and computes its output along with other things, would pass over that.
    """
    return bool(
        "forward" in layer.__dict__  # set by a caller
        or layer._forward_pre_hooks
        or layer._forward_hooks
        or layer._backward_pre_hooks
        or layer._backward_hooks
        or modules._global_forward_pre_hooks  # of all modules
        or modules._global_forward_hooks
        or modules._global_backward_pre_hooks
        or modules._global_backward_hooks
    )


def does_only(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of a layer does what the forward of a class does, and nothing else."""
    return type(layer).forward is kind.forward and not is_hooked(layer)


def is_plain_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer multiplies by its weight, adds its bias if it has one, and does nothing else."""
    return (
        type(layer) is nn.Linear
        and type(layer.weight) in (nn.Parameter, Tensor)  # others, such as quantized ones, know how to multiply
        and not is_hooked(layer)
    )


def call_uncompiled(module: nn.Module, *arguments: Any, **keywords: Any) -> Any:
    """The output of a module, whose hooks are called, by its own forward rather than by code compiled for it."""
    return module._call_impl(*arguments, **keywords)
