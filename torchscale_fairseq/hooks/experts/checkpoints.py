"""One checkpoint of experts that several processes hold: what a single process would have written.

Names in a state dict carry the index of the expert among all; the first process collects those it lacks. Optimizer
states belong to stacked parameters, and are joined along the axis of experts.
"""

from collections.abc import Iterable, Mapping
from itertools import chain, groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchscale_fairseq.checkpoints.shards import AVERAGES, EXPERT, expert_index, is_stacked, own_states
from torchscale_fairseq.core.parallel.expert_parameters import ExpertGradients, is_expert
from torchscale_fairseq.core.parallel.groups import ExpertSplit, exchange_group


def split_of(model: nn.Module) -> ExpertSplit | None:
    """How the experts of a model are held, if it has some that several processes hold."""
    experts = ExpertGradients.of(model.parameters())
    return None if experts is None or experts.split.size * experts.split.replicas == 1 else experts.split


def expert_indices(parameters: Iterable[nn.Parameter]) -> list[int]:
    """Places of experts among the parameters that an optimizer gets, its keys for their states."""
    learnt = [p for p in parameters if p.requires_grad]
    return [index for index, p in enumerate(learnt) if is_expert(p)]


def gather(state: dict[str, Any], split: ExpertSplit, indices: list[int]) -> None:
    """Complete a state of fairseq's Trainer in the first process. All processes call it together.

    Args:
        state: of this process; changed in place.
        split: the experts it has.
        indices: ``expert_indices`` of the optimizer's parameters.
    """
    if split.size == 1 or dist.get_rank() >= split.size:
        return  # every process, or the first ones, hold all there is
    extra = state["extra_state"]
    state["model"] = _gather_named(state["model"], split)
    for name in AVERAGES:
        if name in extra:
            extra[name] = _gather_named(extra[name], split)
    if "last_optimizer_state" in state:
        of_optimizer = dict(state["last_optimizer_state"])
        of_optimizer["state"] = _gather_states(of_optimizer["state"], split, indices)
        state["last_optimizer_state"] = of_optimizer


def take_own(state: dict[str, Any], split: ExpertSplit, indices: list[int]) -> None:
    """Drop the EMA and optimizer entries of experts held by other ranks. ``state['model']`` is left whole; ``Experts``
    selects its own slice on load. Arguments as for ``gather``."""
    own = range(split.first, split.first + split.local)
    averages = state["extra_state"].get("ema_fp32_params", {})
    for name in [name for name in averages if expert_index(name) not in (None, *own)]:
        del averages[name]
    states = (state.get("last_optimizer_state") or {}).get("state", {})
    for index in indices:
        if index in states and any(is_stacked(v) and len(v) > split.local for v in states[index].values()):
            states[index] = own_states(states[index], own)


def _gather_named(tensors: Mapping[str, Tensor], split: ExpertSplit) -> dict[str, Tensor]:
    """The entries of all processes, in the order of a single one."""
    complete: dict[str, Tensor] = {}
    for experts, names in groupby(tensors, _parameter):
        if experts is None:
            complete |= {name: tensors[name] for name in names}
            continue
        parts = _gather(torch.stack([tensors[name] for name in names]), split)
        prefix, rest = experts
        complete |= {f"{prefix}{index}{rest}": value for index, value in enumerate(chain.from_iterable(parts))}
    return complete


def _gather_states(states: Mapping[int, Any], split: ExpertSplit, indices: list[int]) -> dict[int, Any]:
    complete = dict(states)
    for index in indices:
        complete[index] = dict(states.get(index, {}))
        for name, value in complete[index].items():
            if is_stacked(value):
                parts = _gather(value, split)
                complete[index][name] = torch.cat(parts) if parts else value
    return complete


def _gather(tensor: Tensor, split: ExpertSplit) -> list[Tensor]:
    """The tensors of all processes, on the CPU, in the first one; nothing in the others."""
    first = split.rank == 0
    parts = [torch.empty_like(tensor) for _ in range(split.size)] if first else None
    dist.gather(tensor.contiguous(), parts, dst=0, group=exchange_group(split))
    return [part.cpu() for part in parts or ()]


def _parameter(name: str) -> tuple[str, str] | None:
    """The parts of a parameter's name before and after the expert's index; None for parameters outside of experts."""
    match = EXPERT.match(name)
    return (match[1], match[3]) if match else None
