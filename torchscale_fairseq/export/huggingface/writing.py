"""The folder that transformers loads, from a checkpoint of fairseq, and back."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory_atomically
from torchscale_fairseq.core.saving import CONFIG_FILE, CONFIGS, build
from torchscale_fairseq.tools.convert.safetensors_folder import (
    FAIRSEQ_FILE,
    Parts,
    join,
    parts_of,
    read_description,
    write_rest,
)

from ..dictionaries import Dictionaries
from .kinds import MODULE, configuration, generation, kind_of
from .names import tied_names
from .tokenizer_files import write_tokenizers
from .weights import SHARD_BYTES, exported_tensors, read_weights, write_weights


def export(checkpoint: Path, folder: Path, dictionaries: Dictionaries, shard_bytes: int = SHARD_BYTES) -> str:
    """Write the folder, whole or not at all; return a sentence about it.

    Args:
        checkpoint: of one of our models.
        folder: a new one.
        dictionaries: where the dictionaries and the SentencePiece model are.
        shard_bytes: of a file of weights, at most.

    Raises:
        InputError: the checkpoint or the dictionaries do not fit, or the folder exists already.
    """
    parts = parts_of(checkpoint, folder)
    kind = kind_of(parts.config)
    content = configuration(parts.config, parts.tensors, _classes(parts))
    with make_directory_atomically(folder) as scratch:
        note = write_tokenizers(scratch, kind, content.get("vocab_size"), parts, dictionaries)
        write_json(scratch / CONFIG_FILE, content)
        defaults = generation(kind, parts.config)
        if defaults is not None:
            write_json(scratch / "generation_config.json", defaults)
        shutil.copy(Path(__file__).with_name(f"{MODULE}.py"), scratch)
        write_weights(scratch, exported_tensors(core_of(parts.config, parts.tensors)), shard_bytes)
        write_rest(scratch, parts)
    return f"{kind.model} for {kind.auto}, {note}"


def core_of(config: Any, tensors: dict[str, Tensor]) -> nn.Module:
    """The core's model with the values of a state dict, in their dtype."""
    core = build(config, tensors)
    core.to(next(t.dtype for t in tensors.values() if t.is_floating_point()))
    core.load_state_dict(tensors)
    return core


def import_folder(folder: Path, checkpoint: Path) -> str:
    """Write a checkpoint of fairseq from a folder that ``export`` wrote, also after it was trained further by
    transformers; return a sentence about it.

    Raises:
        InputError: the folder is another one, or its weights do not fit its configuration.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file; import hf takes the folder that export hf writes")
    description = read_description(folder / FAIRSEQ_FILE)
    content = json.loads((folder / CONFIG_FILE).read_text())
    shapes = {name: torch.empty(shape) for name, shape in content["core_shapes"].items()}
    core = build(CONFIGS[content["core_config"]](**content["core_options"]), shapes)
    return join(description, _named_as_in_the_core(core, read_weights(folder), folder), folder, checkpoint)


def _named_as_in_the_core(core: nn.Module, exported: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The state dict of the core's model, with TorchScale's names of experts."""
    owners = dict([*core.named_parameters(), *core.named_buffers()])
    for name, value in exported.items():
        if name not in owners or owners[name].shape != value.shape:
            raise InputError(f"{folder}: the tensor {name} does not fit {CONFIG_FILE}")
        owners[name].data = value
    missing = {name for name, _ in core.named_parameters()} - exported.keys()
    if missing:
        raise InputError(f"{folder} lacks the tensor {min(missing)}")
    state = core.state_dict()
    return {**state, **{name: state[owner] for name, owner in tied_names(core).items() if name in state}}


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _classes(parts: Parts) -> list[str]:
    """Names of the classes that an image classifier's task has seen."""
    found: list[str] = (parts.description["entries"].get("task_state") or {}).get("classes") or []
    return found
