"""Writing a checkpoint whole or not at all. Does not need fairseq."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torchscale_fairseq.core.files import write_atomically


def write_checkpoint(state: Any, path: str | Path) -> None:
    """Write ``state`` as ``torch.save`` does; the file takes its name when it is complete.

    Raises:
        WriteError: there is no room, or the folder is missing or not writable.
    """
    with write_atomically(path, size_bytes=size_of(state)) as scratch:
        torch.save(state, scratch)


def size_of(state: Any) -> int:
    """Bytes of the tensors in nested containers, each memory once."""
    sizes: dict[int, int] = {}
    waiting = [state]
    while waiting:
        value = waiting.pop()
        if torch.is_tensor(value):
            storage = value.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)
    return sum(sizes.values())
