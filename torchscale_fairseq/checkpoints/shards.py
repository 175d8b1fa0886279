"""Checkpoints with experts in files of their own, one per process, for models larger than one host's memory.

The checkpoint itself, which the first process writes, has all but the experts, and an entry that names their files.
They lie in the folder ``experts`` next to it, named by update and time, so that a new checkpoint touches none of an
older one's. Reading the checkpoint returns all experts, or the requested ones. Does not need fairseq.
"""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from torchscale_fairseq.checkpoints.writing import write_checkpoint
from torchscale_fairseq.core.parallel.groups import ExpertSplit

FOLDER = "experts"
ENTRY = "expert_shards"
AVERAGES = ("ema", "ema_fp32_params")
"""Entries of extra_state that hold a copy of the parameters."""
EXPERT = re.compile(r"^(.*\bmoe_layer\.experts\.)(\d+)(\..+)$")


def write_shard(state: dict[str, Any], folder: Path, split: ExpertSplit, indices: list[int], update: int) -> None:
    """Move what belongs to experts out of a state into this process's file, and name the files in the state. All
    processes call it together.

    Args:
        state: of fairseq's Trainer; changed in place.
        folder: where the checkpoint goes.
        split: the experts that the state has.
        indices: the optimizer's keys for experts.
        update: number of updates so far.
    """
    shard: dict[str, Any] = {"model": _pop_experts(state["model"]), "optimizer": {}}
    for name in AVERAGES:
        if name in state["extra_state"]:
            shard[name] = _pop_experts(state["extra_state"][name])
    if "last_optimizer_state" in state:
        of_optimizer = state["last_optimizer_state"] = dict(state["last_optimizer_state"])
        of_optimizer["state"] = dict(of_optimizer["state"])
        shard["optimizer"] = {i: of_optimizer["state"].pop(i) for i in indices if i in of_optimizer["state"]}
    time_of_first = _from_first_process(time.time_ns() // 10**6, next(iter(state["model"].values())).device)
    files = [f"{FOLDER}/update{update}-{time_of_first:x}.{rank}of{split.size}.pt" for rank in range(split.size)]
    state[ENTRY] = {"files": files, "experts": split.count}
    if dist.get_rank() < split.size:
        path = folder / files[split.rank]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(shard, path)
    dist.barrier()


def join(
    state: dict[str, Any], checkpoint: str | Path, read: Callable[[Path], Any], own: range | None = None
) -> dict[str, Any]:
    """Bring the experts of a checkpoint back into its state, if they are apart.

    Args:
        state: what the checkpoint holds.
        checkpoint: its path.
        read: reads a file, or says what is wrong with it.
        own: the experts to read; all for None.
    """
    if ENTRY not in state:
        return state
    entry = state.pop(ENTRY)
    local = entry["experts"] // len(entry["files"])
    wanted = range(entry["experts"]) if own is None else own
    parts: dict[int, list[dict[str, Any]]] = {}
    for number, file in enumerate(entry["files"]):
        here = range(max(wanted.start, number * local), min(wanted.stop, (number + 1) * local))
        if not here:
            continue
        shard = read(Path(checkpoint).parent / file)
        _add_own(state["model"], shard["model"], here)
        for name in AVERAGES:
            if name in shard:
                _add_own(state["extra_state"][name], shard[name], here)
        inside = range(here.start - number * local, here.stop - number * local)
        for index, values in shard["optimizer"].items():
            parts.setdefault(index, []).append(own_states(values, inside))
    for index, pieces in parts.items():
        state["last_optimizer_state"]["state"][index] = _joined(pieces)
    return state


def remove_unused(folder: Path, read: Callable[[Path], Mapping[str, Any]]) -> None:
    """Remove the files of experts that no checkpoint in the folder names. Arguments as for ``join``."""
    if not (folder / FOLDER).is_dir():
        return
    used = {file for path in folder.glob("*.pt") for file in read(path).get(ENTRY, {}).get("files", ())}
    for path in (folder / FOLDER).glob("*.pt"):
        if f"{FOLDER}/{path.name}" not in used:
            path.unlink()


def expert_index(name: str) -> int | None:
    """The expert among all that a parameter belongs to, by its name in a state dict."""
    match = EXPERT.match(name)
    return int(match[2]) if match else None


def own_states(states: Mapping[str, Any], own: range) -> dict[str, Any]:
    """An optimizer's states of one stacked parameter, for some of its experts."""
    return {name: value[own.start : own.stop].clone() if is_stacked(value) else value for name, value in states.items()}


def is_stacked(value: Any) -> bool:
    """Whether an optimizer's state has an axis of experts."""
    return torch.is_tensor(value) and value.dim() > 0


def _from_first_process(number: int, device: torch.device) -> int:
    shared = torch.tensor(number, device=device)
    dist.broadcast(shared, 0)
    return int(shared)


def _pop_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors.pop(name) for name in [name for name in tensors if EXPERT.match(name)]}


def _add_own(tensors: dict[str, Tensor], more: Mapping[str, Tensor], own: range) -> None:
    tensors |= {name: value.clone() for name, value in more.items() if expert_index(name) in own}


def _joined(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: torch.cat([piece[name] for piece in pieces]) if is_stacked(value) else value
        for name, value in pieces[0].items()
    }
