"""Checkpoints of a sharded model: every process writes its slices, or the first one what a single process would."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from torchscale_fairseq.checkpoints import distributed
from torchscale_fairseq.core.parallel.fully_sharded import LocalParameters, local_part, part_like
from torchscale_fairseq.core.parallel.groups import ExpertSplit

WRAPPERS = ("FP16Optimizer", "MemoryEfficientFP16Optimizer")
"""Names under which fairseq records optimizers in half precision; sharded ones keep the same states."""


class ShardedStates:
    """Between the states of one process's Trainer, with slices, and whole ones.

    Args:
        parameters: the slices.
        split: how experts are held, if several processes hold them.
    """

    def __init__(self, parameters: LocalParameters, split: ExpertSplit | None):
        self._parameters = parameters
        self._split = split

    def detach(
        self, state: dict[str, Any], folder: Path, update: int, device: torch.device
    ) -> tuple[dict[str, Tensor], Path]:
        """Take the tensors out of a state, and name a new folder for them in it. All processes call it together.

        Args:
            state: of fairseq's Trainer; changed in place.
            folder: where the checkpoint goes.
            update: number of updates so far.
            device: on which processes communicate.

        Returns:
            The tensors, for all processes to write, and the folder.
        """
        tensors = self.tensors_of(state)
        target = distributed.new_folder(folder, update, device)
        state[distributed.ENTRY] = f"{distributed.FOLDER}/{target.name}"
        return tensors, target

    def tensors_of(self, state: dict[str, Any]) -> dict[str, Tensor]:
        """Take the tensors out of a state of fairseq's Trainer."""
        self._spread(state, whole_stacks=True)
        return distributed.pop_tensors(state)

    def gather(self, state: dict[str, Any]) -> None:
        """Make the tensors of a state whole; the experts of other processes are still missing. All processes call it
        together, and the first one keeps them, in host memory."""
        self._spread(state, whole_stacks=False)
        tensors = distributed.pop_tensors(state)
        for name, tensor in tensors.items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self._split is None:
                whole = whole.cpu() if dist.get_rank() == 0 else whole.new_empty(0)
            tensors[name] = whole
        distributed.put_tensors(state, tensors)

    def reader(
        self, model: nn.Module, criterion: nn.Module, averages: Callable[[], Mapping[str, Mapping[str, Tensor]]]
    ) -> Callable[[Path], dict[str, Tensor]]:
        """A function that reads this process's slices of a folder into the model itself. All processes call it
        together. If the folder's model is another one, it reads whole tensors.

        Args:
            model, criterion: in training.
            averages: returns the moving averages, by entry.
        """

        def read(folder: Path) -> dict[str, Tensor]:
            there = distributed.described(folder)
            own = {f"model.{name}": value for name, value in model.state_dict().items()}
            own |= {f"criterion.{name}": value for name, value in criterion.state_dict().items()}
            if any(name not in there or there[name][0] != value.shape for name, value in own.items()):
                return distributed.read_whole(folder)
            for entry, values in averages().items():
                own |= {f"{entry}.{name}": value for name, value in values.items() if f"{entry}.{name}" in there}
            own |= self._empty_states(there)
            distributed.read_into(own, folder)
            return {name: self._own(name, value) for name, value in own.items()}

        return read

    def _empty_states(self, there: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Tensor]:
        """The optimizer's states that a folder has, to be filled."""
        states = {}
        for name, (size, dtype) in there.items():
            if name.startswith("optimizer."):
                index, local = int(name.split(".")[1]), self._parameters.local
                like = self._parameters.spread(index, torch.empty_like(local[index], dtype=dtype), self._split)
                states[name] = like if like.shape == size else torch.empty(size, dtype=dtype)
        return states

    def _own(self, name: str, value: Tensor) -> Tensor:
        if not name.startswith("optimizer."):
            return value
        part, slice_ = local_part(value), self._parameters.local[int(name.split(".")[1])]
        return part[: len(slice_)] if part.dim() == slice_.dim() and part.dim() else part

    def cut(self, state: dict[str, Any]) -> None:
        """Leave of the optimizer's states in a complete state this process's slices."""
        of_optimizer = state.get("last_optimizer_state")
        if not of_optimizer:
            return
        of_optimizer["state"] = _unflattened(of_optimizer["state"], self._parameters)
        for index, values in of_optimizer["state"].items():
            of_optimizer["state"][index] = {name: self._cut(index, value) for name, value in values.items()}
        groups = of_optimizer["param_groups"]
        if len(groups) == 1:
            groups[0]["params"] = list(range(len(self._parameters.local)))

    def _cut(self, index: int, value: Any) -> Any:
        parameter = self._parameters.sharded[index]
        if not torch.is_tensor(value) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
            return value
        return part_like(value, parameter).clone()

    def _spread(self, state: dict[str, Any], *, whole_stacks: bool) -> None:
        """Turn the optimizer's states, of slices, into DTensors."""
        if not state.get("last_optimizer_state"):
            return
        of_optimizer = state["last_optimizer_state"] = dict(state["last_optimizer_state"])
        split = self._split if whole_stacks else None
        of_optimizer["state"] = {
            index: {n: self._parameters.spread(index, v, split) if torch.is_tensor(v) else v for n, v in values.items()}
            for index, values in of_optimizer["state"].items()
        }


def _unflattened(states: Mapping[int, Any], parameters: LocalParameters) -> dict[int, Any]:
    """States per parameter, from those of all parameters as one, which --fp16 makes elsewhere."""
    sizes = [p.numel() for p in parameters.sharded]
    flat = states.get(0, {})
    if (
        len(states) != 1
        or len(sizes) == 1
        or not any(torch.is_tensor(v) and v.numel() == sum(sizes) for v in flat.values())
    ):
        return dict(states)
    parts = {n: v.split(sizes) if torch.is_tensor(v) and v.numel() == sum(sizes) else None for n, v in flat.items()}
    return {
        index: {n: flat[n] if part is None else part[index].view(p.shape) for n, part in parts.items()}
        for index, p in enumerate(parameters.sharded)
    }
