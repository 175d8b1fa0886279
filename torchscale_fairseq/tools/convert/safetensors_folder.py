"""Folders of safetensors that hold a model of a checkpoint, and checkpoints that are made of them."""

import json
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.checkpoints.writing import write_checkpoint
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory_atomically
from torchscale_fairseq.core.saving import WEIGHTS_FILE, read_tensors, write_folder, write_tensors
from torchscale_fairseq.tools.convert.checkpoint_files import build, core_config, core_parts, is_ours, model_options

HEADS_FILE = "heads.safetensors"
FAIRSEQ_FILE = "fairseq.json"
KEPT = ("args", "cfg", "optimizer_history", "task_state")
"""Entries of a checkpoint that fairseq.json holds."""

NAMESPACE = "argparse.Namespace"
"""Key of an object of fairseq.json that stands for a namespace."""


@dataclass(frozen=True)
class Parts:
    """The parts of a model in a checkpoint of fairseq.

    Args:
        config: of the core's model.
        tensors: its state dict.
        heads: parameters that the core's model lacks, by their names in the checkpoint.
        description: content of fairseq.json.
    """

    config: Any
    tensors: dict[str, Tensor]
    heads: dict[str, Tensor]
    description: dict[str, Any]


def to_folder(checkpoint: Path, folder: Path) -> str:
    """Write the folder, whole or not at all; return a sentence about it.

    Raises:
        InputError: the checkpoint is a folder or not of one of our models, or the new folder exists already.
    """
    parts = parts_of(checkpoint, folder)
    with make_directory_atomically(folder) as scratch:
        write_folder(scratch, parts.config, parts.tensors)
        write_rest(scratch, parts)
    apart = f", and {len(parts.heads)} of heads in {HEADS_FILE}" if parts.heads else ""
    return f"{type(parts.config).__name__.removesuffix('Config')} of {len(parts.tensors)} tensors{apart}"


def parts_of(checkpoint: Path, folder: Path) -> Parts:
    """Read a checkpoint for a new folder.

    Raises:
        InputError: the checkpoint is a folder or not of one of our models, or the new folder exists already.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already; name a new folder")
    return read_parts(checkpoint)


def read_parts(checkpoint: Path) -> Parts:
    """Read a checkpoint.

    Raises:
        InputError: the checkpoint is a folder or not of one of our models.
    """
    if checkpoint.is_dir():
        raise InputError(
            f"{checkpoint} is a folder; name a checkpoint, or make one of the folder with from-safetensors"
        )
    state = load_checkpoint(checkpoint)
    options = model_options(state, checkpoint)
    if not is_ours(options):
        raise InputError(
            f"{checkpoint} is of --arch {options['_name']}, not of torchscale_fairseq; if TorchScale made it, convert "
            "it with torchscale-fairseq convert from-torchscale first"
        )
    parameters = state["model"]
    model = build(options, parameters, checkpoint)
    config, prefix = core_config(model), prefix_of(model)
    heads = {name: value for name, value in parameters.items() if not name.startswith(prefix)}
    tensors = {name.removeprefix(prefix): value for name, value in parameters.items() if name not in heads}
    description = {
        "entries": {key: to_json(state[key], key, checkpoint) for key in KEPT if key in state},
        "prefix": prefix,
        "names": list(parameters),
    }
    return Parts(config, tensors, heads, description)


def write_rest(folder: Path, parts: Parts) -> None:
    """Write what only fairseq needs: fairseq.json, and heads if there are any."""
    (folder / FAIRSEQ_FILE).write_text(json.dumps(parts.description, indent=2) + "\n")
    if parts.heads:
        write_tensors(folder / HEADS_FILE, parts.heads)


def prefix_of(model: nn.Module) -> str:
    """Start of the names of the parameters that the core's model has; all others are of heads."""
    parts = [part for part in core_parts(model) if part != "model"]
    return f"{parts[0]}." if len(parts) == 1 else ""


def to_checkpoint(folder: Path, checkpoint: Path) -> str:
    """Write the checkpoint; return a sentence about it.

    Raises:
        InputError: the folder was not made of a checkpoint.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file; from-safetensors takes the folder that to-safetensors writes")
    description = read_description(folder / FAIRSEQ_FILE)
    return join(description, read_tensors(folder / WEIGHTS_FILE), folder, checkpoint)


def join(description: dict[str, Any], core_tensors: Mapping[str, Tensor], folder: Path, checkpoint: Path) -> str:
    """Write a checkpoint of a core model's state dict and the rest in its folder; return a sentence about it.

    Args:
        description: content of fairseq.json.
        core_tensors: the state dict.
        folder: of the rest.
        checkpoint: to write.

    Raises:
        InputError: the parts do not belong together.
    """
    tensors = {description["prefix"] + name: value for name, value in core_tensors.items()}
    if (folder / HEADS_FILE).exists():
        tensors |= read_tensors(folder / HEADS_FILE)
    check_names(tensors, description["names"], folder)
    state = {
        "task_state": {},
        **{key: from_json(value) for key, value in description["entries"].items()},
        "model": OrderedDict((name, tensors[name]) for name in description["names"]),
        "criterion": None,
        "extra_state": {},
    }
    write_checkpoint(state, checkpoint)
    return f"{len(tensors)} tensors"


def read_description(path: Path) -> dict[str, Any]:
    """The content of fairseq.json.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: the folder was not made of a checkpoint of fairseq") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from None
    return content


def check_names(tensors: dict[str, Tensor], names: list[str], folder: Path) -> None:
    for name in sorted(tensors.keys() ^ set(names)):
        where = "in its tensors" if name in tensors else f"in {FAIRSEQ_FILE}"
        raise InputError(f"{folder}: {name} is only {where}; the files do not belong together")


def to_json(value: Any, where: str, path: Path) -> Any:
    """The value in JSON's types.

    Raises:
        InputError: it holds others.
    """
    if isinstance(value, Namespace):
        return {NAMESPACE: to_json(vars(value), where, path)}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: to_json(content, f"{where}.{key}", path) for key, content in value.items()}
    if isinstance(value, list):
        return [to_json(content, f"{where}[{index}]", path) for index, content in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(f"{path}: {where} is of type {type(value).__name__}, which JSON lacks")


def from_json(value: Any) -> Any:
    """The value that ``to_json`` was given."""
    if isinstance(value, dict):
        content = {key: from_json(item) for key, item in value.items()}
        return Namespace(**content[NAMESPACE]) if NAMESPACE in content else content
    return [from_json(item) for item in value] if isinstance(value, list) else value
