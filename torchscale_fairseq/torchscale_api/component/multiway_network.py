"""A module of its own for each of two modalities (BEiT-3, arXiv:2208.10442)."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def MultiwayWrapper(args: Any, module: nn.Module, dim: int = 1) -> nn.Module:
    """The module, doubled if ``args.multiway``."""
    return MultiwayNetwork(module, dim=dim) if getattr(args, "multiway", False) else module


def set_split_position(position: int) -> Callable[[nn.Module], None]:
    """A function for ``model.apply`` that sets the end of modality A: -1 if all tokens are A, 0 if all are B."""

    def apply_fn(module: nn.Module) -> None:
        if hasattr(module, "split_position"):
            setattr(module, "split_position", position)  # noqa: B010 - any module may have it

    return apply_fn


class MultiwayNetwork(nn.Module):
    """``A`` for tokens before ``split_position``, ``B`` for the others.

    Args:
        module: A; B is a copy with initial values of its own.
        dim: the axis of tokens.
    """

    def __init__(self, module: nn.Module, dim: int = 1):
        super().__init__()
        self.dim = dim
        self.A = module
        self.B: Any = copy.deepcopy(module)
        reset: Any = getattr(self.B, "reset_parameters", None)
        if reset is not None:
            reset()
        self.split_position = -1

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """A tensor of tokens to what the two make of its parts."""
        if self.split_position in (-1, 0):
            only: Any = self.B if self.split_position == 0 else self.A
            return only(x, **kwargs)
        first, second = x.split([self.split_position, x.size(self.dim) - self.split_position], self.dim)
        return torch.cat([self.A(first, **kwargs), self.B(second, **kwargs)], self.dim)


class MutliwayEmbedding(MultiwayNetwork):
    """Two given modules; the name is spelt as in TorchScale.

    Args:
        modules: A and B.
        dim: the axis of tokens.
    """

    def __init__(self, modules: list[nn.Module], dim: int = 1):
        nn.Module.__init__(self)
        self.dim = dim
        self.A, self.B = modules
        self.split_position = -1


class MutliwayPositions(MutliwayEmbedding):
    """Positions of both modalities: those given are cut like the tokens."""

    def forward(self, x: Tensor, positions: Tensor | None = None, **kwargs: Any) -> Tensor:
        """As of ``PositionalEmbedding``; positions of the second part begin anew unless given."""
        split = self.split_position
        if positions is None or split in (-1, 0):
            return super().forward(x, positions=positions, **kwargs)
        parts = (self.A, x[:, :split], positions[:, :split]), (self.B, x[:, split:], positions[:, split:])
        return torch.cat([module(tokens, positions=rows) for module, tokens, rows in parts], self.dim)
