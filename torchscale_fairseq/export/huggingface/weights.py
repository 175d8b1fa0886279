"""Weights as transformers reads them: safetensors, in several files above a size, with an index."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.saving import read_tensors, write_tensors

from .names import keep_stacked, tied_names

SHARD_BYTES = 5 * 10**9
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PREFIX = "core."
"""The prefix of the core's parameters in transformers' model."""


def exported_tensors(core: nn.Module) -> dict[str, Tensor]:
    """The tensors of a core's model by transformers' names, without further names of those that are tied.

    The model's state dict has them by these names afterwards.
    """
    keep_stacked(core)
    again = tied_names(core)
    return {PREFIX + name: value for name, value in core.state_dict().items() if name not in again}


def write_weights(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Write one file, or several of at most ``shard_bytes`` (or one tensor) and their index."""
    shards = list(_shards(tensors, shard_bytes))
    if len(shards) == 1:
        write_tensors(folder / SINGLE, shards[0])
        return
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(folder / name, shard)
        files |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": files}, indent=2) + "\n")


def _shards(tensors: Mapping[str, Tensor], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if shard and sum(held.nbytes for held in shard.values()) + tensor.nbytes > shard_bytes:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors in a folder by the core's names.

    Raises:
        FileNotFoundError: there are none.
        InputError: a file is damaged, or a tensor is not one of the core's.
    """
    files = [SINGLE]
    if (folder / INDEX).exists():
        files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    tensors = {name: value for file in files for name, value in read_tensors(folder / file).items()}
    foreign = next((name for name in tensors if not name.startswith(PREFIX)), None)
    if foreign is not None:
        raise InputError(f"{folder} has a tensor {foreign}, which is none of a model that export hf wrote")
    return {name.removeprefix(PREFIX): value for name, value in tensors.items()}
