"""Low-rank adapters of linear layers, which are trained instead of the layers.

LoRA, arXiv:2106.09685, sec. 4.1: h = W x + (alpha / rank) B A x, where W is frozen.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import nearest
from ..option_error import OptionError

TARGETS = ("q_proj", "k_proj", "v_proj", "g_proj", "out_proj", "fc1", "fc2", "gate")
"""Names of the linear layers that can have adapters: of attention, retention and feed-forward networks."""
ALL = "all"
"""In place of names: all of TARGETS that a model has."""


@dataclass(frozen=True)
class LoRA:
    """Settings of the adapters of a model.

    Raises:
        OptionError: a value is out of its range.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    """Dropout probability of the adapters' input."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of linear layers among ``TARGETS``, or ``ALL``."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise OptionError("lora_rank", self.rank, "{lora_rank()} must be at least 1", [{"lora_rank": 8}])
        if not 0 <= self.dropout < 1:
            condition = "{lora_dropout()} must be at least 0 and below 1"
            raise OptionError("lora_dropout", self.dropout, condition, [{"lora_dropout": 0.0}])
        for name in self.targets:
            if name not in (*TARGETS, ALL):
                meant = (*nearest(name, TARGETS), ALL)[0]
                condition = f"{{lora_targets}} names {name!r}, which is none of {', '.join((*TARGETS, ALL))}"
                raise self._refused(condition, [meant if target == name else target for target in self.targets])

    def _refused(self, condition: str, targets: list[str]) -> OptionError:
        """The error of targets in place of which others can be given; none if the list is empty."""
        remedies = [{"lora_targets": ",".join(targets)}] if targets else []
        return OptionError("lora_targets", ",".join(self.targets), condition, remedies)

    def without_place(self, layers: set[str]) -> OptionError:
        """The error of targets that a model does not have.

        Args:
            layers: the model's own linear layers, by the last part of their names.
        """
        condition = "{lora_targets()} names no linear layer that this model has"
        return self._refused(condition, [name for name in TARGETS if name in layers])

    @property
    def scale(self) -> float:
        """Factor on the product of the two matrices."""
        return self.alpha / self.rank

    def includes(self, name: str) -> bool:
        """Whether the linear layer of this name, within its model, gets an adapter. Each of a multiway pair does."""
        own = _own_name(name)
        return own in self.targets or (ALL in self.targets and own in TARGETS)


def _own_name(name: str) -> str:
    """Last part of a module's name, but for those of a multiway pair."""
    return [part for part in name.split(".") if part not in ("A", "B")][-1]


class LoRALinear(nn.Linear):
    """A frozen linear layer with an adapter. As initialised, the adapter adds nothing.

    Args:
        linear: the layer, whose parameters it takes over.
        options: of the adapter.
    """

    def __init__(self, linear: nn.Linear, options: LoRA):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.options = options
        self.lora_dropout = nn.Dropout(options.dropout)
        self.lora_A = nn.Parameter(self.weight.new_empty(options.rank, linear.in_features))
        self.lora_B = nn.Parameter(self.weight.new_zeros(linear.out_features, options.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as nn.Linear draws its weights
        self.register_load_state_dict_pre_hook(_keep_missing_adapter)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        adapter = F.linear(F.linear(self.lora_dropout(x), self.lora_A), self.lora_B)
        return super().forward(x) + self.options.scale * adapter

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, lora_rank={self.options.rank}"


def add_adapters(model: nn.Module, options: LoRA) -> list[str]:
    """Give linear layers of a model adapters, in place, and freeze its other parameters.

    Args:
        model: with linear layers of ``nn.Linear`` itself.
        options: of the adapters.

    Returns:
        The names of the layers with adapters.

    Raises:
        OptionError: the model has none of the targets.
    """
    model.requires_grad_(False)
    found = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    chosen = [(name, module) for name, module in found if options.includes(name)]
    if not chosen:
        raise options.without_place({_own_name(name) for name, _ in found})
    for name, module in chosen:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, LoRALinear(module, options))
    return [name for name, _ in chosen]


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.rpartition(".")[2] in ("lora_A", "lora_B")


def merged(parameters: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A state dict whose weights include what their adapters add, computed in float64.

    Args:
        parameters: a state dict with adapters.
        scale: ``LoRA.scale``.
    """
    result = {name: value for name, value in parameters.items() if not is_adapter(name)}
    for name in parameters:
        layer, _, own = name.rpartition(".")
        if own == "lora_A":
            a, b = (parameters[f"{layer}.{part}"].double() for part in ("lora_A", "lora_B"))
            weight = result[f"{layer}.weight"]
            result[f"{layer}.weight"] = (weight.double() + scale * (b @ a)).to(weight.dtype)
    return result


def _keep_missing_adapter(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """A checkpoint of the model without adapters leaves them as they are."""
    for name in ("lora_A", "lora_B"):
        parameter = getattr(module, name)
        assert isinstance(parameter, torch.Tensor)
        state_dict.setdefault(f"{prefix}{name}", parameter.detach())
