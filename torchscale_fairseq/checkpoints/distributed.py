"""Checkpoints whose tensors lie in a folder of torch.distributed.checkpoint, to which every process writes its own.

The checkpoint itself, ``checkpoint_last.pt`` say, has all but the tensors, and an entry that names the folder: one in
``shards`` next to it, named by update and time. So a new checkpoint touches nothing of an older one, a copy under
another name is small, and any number of processes reads what it needs. Does not need fairseq.
"""

import mmap
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from torchscale_fairseq.checkpoints.shards import AVERAGES
from torchscale_fairseq.checkpoints.writing import size_of
from torchscale_fairseq.core.files import write_atomically

FOLDER = "shards"
ENTRY = "tensors"
SCRATCH = ".part"
"""Ending of a folder that is being written."""
WRITERS = 4
"""Threads of a process that write, each a file: one does not keep a disk or a network busy."""
Loader = Callable[[Path], dict[str, Tensor]]
"""From the folder of a checkpoint's tensors to those that are needed, by name."""


def pop_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """Take the tensors out of a state of fairseq's Trainer.

    Returns:
        By names such as ``model.decoder.layers.0.ffn.fc1.weight`` and ``optimizer.0.exp_avg``.
    """
    tensors = {}
    for prefix, values in _places(state):
        for name in [name for name, value in values.items() if torch.is_tensor(value)]:
            tensors[f"{prefix}.{name}"] = values.pop(name)
    return tensors


def put_tensors(state: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put tensors where ``pop_tensors`` took them from."""
    for prefix, values in _places(state):
        start = f"{prefix}."
        values |= {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _places(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The dictionaries of a state that hold tensors. They are put into it as copies, which may be changed."""
    for name in ("model", "criterion"):
        if state.get(name) is not None:
            state[name] = dict(state[name])
            yield name, state[name]
    for name in AVERAGES:
        if name in state["extra_state"]:
            state["extra_state"][name] = dict(state["extra_state"][name])
            yield name, state["extra_state"][name]
    if state.get("last_optimizer_state"):
        state["last_optimizer_state"] = of_optimizer = dict(state["last_optimizer_state"])
        of_optimizer["state"] = {index: dict(values) for index, values in of_optimizer["state"].items()}
        for index, values in of_optimizer["state"].items():
            yield f"optimizer.{index}", values


def new_folder(folder: Path, update: int, device: torch.device) -> Path:
    """A folder for the tensors of a checkpoint in ``folder``, with one name in all processes, which call it together.

    Args:
        folder: of checkpoints.
        update: number of updates so far.
        device: on which the processes communicate.
    """
    now = torch.tensor(time.time_ns() // 10**6, device=device)
    dist.broadcast(now, 0)
    return folder / FOLDER / f"update{update}-{int(now):x}"


def write(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write tensors, plain ones or DTensors; the folder takes its name when it is complete. All processes call it
    together."""
    scratch = folder.with_name(folder.name + SCRATCH)
    dcp.save(tensors, storage_writer=FileSystemWriter(scratch, thread_count=WRITERS))
    if dist.get_rank() == 0:
        scratch.rename(folder)
    dist.barrier()


def join(state: dict[str, Any], checkpoint: str | Path, load: Loader | None = None) -> dict[str, Any]:
    """Bring the tensors of a checkpoint back into its state, if they are apart.

    Args:
        state: what the checkpoint holds.
        checkpoint: its path.
        load: gets the tensors; None: whole ones.
    """
    if ENTRY in state:
        folder = Path(checkpoint).parent / state.pop(ENTRY)
        put_tensors(state, (load or read_whole)(folder))
    return state


def read_whole(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, in host memory."""
    tensors = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in described(folder).items()}
    read_into(tensors, folder, alone=True)
    return tensors


def read_into(tensors: dict[str, Tensor], folder: Path, *, alone: bool = False) -> None:
    """Fill tensors, plain ones or DTensors, with what a folder has under their names.

    Args:
        tensors: to be filled.
        folder: with a tensor of each name.
        alone: other processes read nothing, or read by themselves.
    """
    with warnings.catch_warnings():
        if alone:  # of which torch would warn
            warnings.simplefilter("ignore", UserWarning)
        dcp.load(tensors, storage_reader=FileSystemReader(folder), no_dist=alone)


def consolidate(checkpoint: str | Path, output: str | Path, read: Callable[[Path], Any]) -> None:
    """Write a checkpoint whose tensors are apart as one file. Tensors go from file to file: memory holds a few of them
    at a time, however large the model is.

    Args:
        checkpoint: its path.
        output: of the file.
        read: reads a file, mapping the tensors in it.

    Raises:
        WriteError: there is no room, or the folder is missing or not writable.
    """
    state, small = read(Path(checkpoint)), read(Path(checkpoint))
    folder = Path(checkpoint).parent / state.pop(ENTRY)
    put_tensors(state, {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in described(folder).items()})
    with write_atomically(output, size_bytes=size_of(state)) as scratch:
        with torch.serialization.skip_data():  # room for the tensors, which are not touched and so take no memory
            torch.save(state, scratch)
        with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
            whole = read(scratch)
        _copy(small, whole)
        read_into(pop_tensors(whole), folder, alone=True)


def _copy(source: Any, target: Any) -> None:
    """Copy the tensors in nested containers."""
    if torch.is_tensor(source):
        target.copy_(source)
    elif isinstance(source, Mapping):
        for name in source.keys() & target.keys():
            _copy(source[name], target[name])
    elif isinstance(source, (list, tuple)):
        for ours, theirs in zip(source, target, strict=True):
            _copy(ours, theirs)


def described(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of the tensors of a folder."""
    entries = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {
        name: (entry.size, entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def remove_unused(folder: Path, read: Callable[[Path], Mapping[str, Any]]) -> None:
    """Remove the tensors that no checkpoint in the folder names.

    Args:
        folder: of checkpoints.
        read: reads one.
    """
    if not (folder / FOLDER).is_dir():
        return
    used = {read(path).get(ENTRY) for path in folder.glob("*.pt")}
    for path in (folder / FOLDER).iterdir():
        if f"{FOLDER}/{path.name}" not in used:
            shutil.rmtree(path)
