"""Feed-forward networks of several experts, stored as one: a parameter has an axis of experts in front.

In a state dict they have TorchScale's names, ``0.fc1.weight`` and so on, with the index of the expert among all
processes' experts; loading takes this process's own out of a state dict with all of them, or with these.
"""

import math
import re
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.gating import gate
from ..ops.gelu_norm import grouped_gelu_norm, has_kernel
from ..ops.grouped import grouped_linear
from ..ops.grouped_products import ALIGNMENT
from ..ops.segments import Segments
from ..parallel.expert_parameters import ExpertGradients, mark_expert
from ..parallel.fully_sharded import unbind_experts
from ..parallel.groups import ExpertSplit
from .feed_forward import ACTIVATIONS
from .grouped import GroupedLinear, GroupedNorm
from .hooked import is_hooked


class Experts(nn.Module):
    """``FeedForwardNetwork``, or with gated ``GatedLinearUnit``, of each local expert.

    Args:
        split: the local experts.
        embed_dim: width of input and output.
        ffn_dim: inner width.
        gated: gated linear units without biases.
        activation_fn: gelu, relu or swish.
        dropout: after the activation (expert dropout, Switch Transformer, arXiv:2101.03961, sec. 2.4).
        norm: kind of the inner norm, or None.
        eps: of the inner norm.
        norm_weight: as for ``ExpertGradients``, for whoever clips.
        gradient_root: divide gradients by the square root of the number of processes, not by the number, which is
            what makes them those of a mean over processes.
        linear: makes the projections, as GroupedLinear.
    """

    def __init__(
        self,
        split: ExpertSplit,
        embed_dim: int,
        ffn_dim: int,
        *,
        gated: bool,
        activation_fn: str,
        dropout: float,
        norm: str | None,
        eps: float,
        norm_weight: float = 1.0,
        gradient_root: bool = False,
        linear: Callable[..., nn.Module] = GroupedLinear,
    ):
        super().__init__()
        self.split, self.ffn_dim = split, ffn_dim
        self.activation = ACTIVATIONS[activation_fn]
        self.dropout = nn.Dropout(dropout)
        self.fc1 = linear(split, embed_dim, ffn_dim, bias=not gated, activated=True)
        self.gate = linear(split, embed_dim, ffn_dim, bias=False) if gated else None
        self.ffn_layernorm = None if norm is None else GroupedNorm(split, norm, ffn_dim, eps)
        self.fc2 = linear(split, ffn_dim, embed_dim, bias=not gated)
        self.gradient_root = gradient_root
        gradients = ExpertGradients(split, norm_weight)
        for parameter in self.parameters():
            mark_expert(parameter, gradients)
        self.register_state_dict_post_hook(_to_names_of_experts)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_names_of_experts)  # type: ignore[no-untyped-call]

    @property
    def gradient_divisor(self) -> float:
        """Divisor of the sum of gradients over processes, by which whoever calls the experts divides."""
        return math.sqrt(self.split.processes) if self.gradient_root else float(self.split.processes)

    def rows_refusal(self) -> str | None:
        """Why these experts need the counts of their rows on the host; None if kernels leave them on the device."""
        first = self.fc1
        if not isinstance(first, GroupedLinear) or type(first) is not GroupedLinear:
            return f"does not serve {type(first).__name__}"
        widths = first.weight.shape[1:]
        if any(n * first.weight.element_size() % ALIGNMENT for n in widths):
            return f"needs rows of a multiple of {ALIGNMENT} bytes, not widths of {' and '.join(map(str, widths))}"
        return None

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """(rows, embed_dim), whose segments are those of the local experts, to the same."""
        if segments.rows is not None and self._is_plain and has_kernel(x, self.ffn_dim):
            return self.fc2(self._normed_by_kernel(x, segments), segments)
        hidden = self.fc1(x, segments)
        if self.gate is None:
            hidden = self.activation(hidden)
        else:
            hidden = gate(self.activation, hidden, self.gate(x, segments))
        hidden = self.dropout(hidden)
        if self.ffn_layernorm is not None:
            hidden = self.ffn_layernorm(hidden, segments)
        return self.fc2(hidden, segments)

    def _normed_by_kernel(self, x: Tensor, segments: Segments) -> Tensor:
        first, norm = cast(GroupedLinear, self.fc1), cast(GroupedNorm, self.ffn_layernorm)
        assert first.bias is not None and norm.bias is not None
        hidden = grouped_linear(x, first.weight, None, segments)
        return grouped_gelu_norm(hidden, first.bias, norm.weight, norm.bias, norm.eps, segments)

    @property
    def _is_plain(self) -> bool:
        """Whether nothing but a bias, GELU and LayerNorm lies between the two projections."""
        norm = self.ffn_layernorm
        return (
            self.gate is None
            and self.activation is F.gelu
            and type(norm) is GroupedNorm
            and norm.bias is not None
            and not (self.training and self.dropout.p)
            and not any(map(is_hooked, (self.fc1, self.dropout, norm)))
        )


def _to_names_of_experts(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    assert isinstance(module, Experts)
    for name in _names(module):
        if prefix + name in state:
            for index, value in enumerate(unbind_experts(state.pop(prefix + name)), module.split.first):
                state[f"{prefix}{index}.{name}"] = value


def _from_names_of_experts(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: list[str]
) -> None:
    assert isinstance(module, Experts)
    split, error_messages = module.split, lists[-1]
    numbered = re.compile(re.escape(prefix) + r"(\d+)\.")
    found = {int(match[1]) for match in map(numbered.match, state) if match}
    own = range(split.first, split.first + split.local)
    if found and found not in ({*range(split.count)}, {*own}):
        error_messages.append(
            f"{prefix[:-1]} has experts {_ranges(found)} in the checkpoint, but 0-{split.count - 1} here; set "
            f"moe_expert_count to {max(found) + 1}."
        )
        return
    if not found:
        return
    for name in _names(module):
        parts = [state[f"{prefix}{index}.{name}"] for index in own if f"{prefix}{index}.{name}" in state]
        if len(parts) == split.local:
            state[prefix + name] = torch.stack(parts)
    names = _names(module)
    for key in [key for key in state if numbered.match(key)]:
        if key.removeprefix(prefix).split(".", 1)[1] in names:
            del state[key]


def _names(module: Experts) -> list[str]:
    return [name for name, _ in (*module.named_parameters(), *module.named_buffers())]


def _ranges(numbers: set[int]) -> str:
    contiguous = numbers == set(range(min(numbers), max(numbers) + 1))
    return f"{min(numbers)}-{max(numbers)}" if contiguous else ", ".join(map(str, sorted(numbers)))
