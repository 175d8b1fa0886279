"""Parameters of experts, and how their gradients are treated.

Each has the attribute ``expert``, by which fairseq tells experts from the rest. Nothing else reads or sets it than the
functions here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .groups import ExpertSplit


@dataclass(frozen=True)
class ExpertGradients:
    """How the gradients of a parameter of experts are summed and clipped.

    Args:
        split: the experts that this process holds.
        norm_weight: factor on the squares of the gradients in the norm by which gradients are clipped
            (``ops.sparse_clip``).
    """

    split: ExpertSplit
    norm_weight: float = 1.0

    @staticmethod
    def of(parameters: Iterable[Tensor]) -> "ExpertGradients | None":
        """Those of the first expert among parameters, which all experts of a model share; None without experts."""
        marks = (mark_of(p) for p in parameters if is_expert(p))
        return next((mark for mark in marks if isinstance(mark, ExpertGradients)), None)


def is_expert(parameter: Tensor) -> bool:
    """Whether a parameter belongs to experts, of this package or of fairseq."""
    return hasattr(parameter, "expert")


def expert_names(model: nn.Module) -> list[str]:
    """Names of a model's parameters that belong to experts."""
    return [name for name, p in model.named_parameters() if is_expert(p)]


def mark_of(parameter: Tensor) -> Any:
    """``ExpertGradients``, or True for experts of fairseq. The parameter must belong to experts."""
    return parameter.expert  # type: ignore[attr-defined]


def mark_expert(parameter: Tensor, mark: Any) -> None:
    """Make a parameter one of experts; arguments as ``mark_of`` returns them."""
    parameter.expert = mark  # type: ignore[attr-defined]
