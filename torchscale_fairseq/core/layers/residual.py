"""The residual connection around a sublayer."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..ops.drop_path import drop_path

Report = TypeVar("Report")


class Residual(nn.Module):
    """Pre-norm: x <- alpha x + f(norm(x)); post-norm: x <- norm(alpha x + f(x)).

    DeepNorm (DeepNet, arXiv:2203.00555, sec. 3) is post-norm with alpha above 1. Dropout and stochastic
    depth act on f. It has no parameters: the norm belongs to the layer.
    """

    def __init__(self, *, alpha: float, pre_norm: bool, dropout: float, drop_path_rate: float):
        super().__init__()
        self.alpha = alpha
        self.pre_norm = pre_norm
        self.dropout = nn.Dropout(dropout)
        self.drop_path_rate = drop_path_rate

    def forward(
        self, x: Tensor, norm: Callable[[Tensor], Tensor], sublayer: Callable[..., Tensor], *arguments: Any
    ) -> Tensor:
        """Add a sublayer's output to its input.

        Args:
            x: (batch, seq, width).
            norm: the sublayer's.
            sublayer: from (batch, seq, width) and the arguments to (batch, seq, width).
            arguments: for the sublayer.
        """
        return self._add(x, norm, sublayer(norm(x) if self.pre_norm else x, *arguments))

    def with_report(
        self,
        x: Tensor,
        norm: Callable[[Tensor], Tensor],
        sublayer: Callable[..., tuple[Tensor, Report]],
        *arguments: Any,
    ) -> tuple[Tensor, Report]:
        """Add the output of a sublayer that returns a report, too, which is passed on; arguments as for ``forward``."""
        output, report = sublayer(norm(x) if self.pre_norm else x, *arguments)
        return self._add(x, norm, output), report

    def _add(self, x: Tensor, norm: Callable[[Tensor], Tensor], output: Tensor) -> Tensor:
        update = self.dropout(output)
        if self.training and self.drop_path_rate > 0:
            update = drop_path(update, self.drop_path_rate)
        x = x + update if self.alpha == 1.0 else torch.add(update, x, alpha=self.alpha)
        return x if self.pre_norm else norm(x)

    def extra_repr(self) -> str:
        placement = "pre" if self.pre_norm else "post"
        return f"{placement}-norm, alpha={self.alpha:.4g}, drop_path_rate={self.drop_path_rate:.3g}"
