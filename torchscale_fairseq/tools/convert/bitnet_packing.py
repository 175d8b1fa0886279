"""Checkpoints of BitNet models with packed weights."""

from pathlib import Path
from typing import Any

from torch import Tensor

from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.checkpoints.writing import write_checkpoint
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.layers.bit_linear import PackedWeight
from torchscale_fairseq.tools.convert.checkpoint_files import build, model_options


def pack_checkpoint(path: Path, output: Path) -> str:
    """Write the checkpoint; return a sentence about it.

    Raises:
        InputError: the checkpoint is not of a BitNet model, or is packed already.
    """
    state = load_checkpoint(path)
    options = model_options(state, path)
    if not options.get("bitnet"):
        raise InputError(
            f"{path} is of --arch {options['_name']} without --bitnet; only BitNet's weights can be packed"
        )
    if options["bitnet_packed"]:
        raise InputError(f"{path} is packed already")
    weights = state["model"]
    packed, kept = pack_all(weights, options["bitnet"])
    build({**options, "bitnet_packed": True}, packed, path)
    write_checkpoint(
        {
            "args": None,
            "cfg": {**state["cfg"], "model": {**state["cfg"]["model"], "bitnet_packed": True}},
            "model": packed,
            "optimizer_history": state["optimizer_history"],
            "criterion": None,
            "task_state": state.get("task_state", {}),
            "extra_state": {},
        },
        output,
    )
    count = sum(weight.numel() for name, weight in weights.items() if name not in kept)
    size = sum(content.nbytes for name, content in packed.items() if name not in kept)
    rest = sum(content.nbytes for content in kept.values())
    return (
        f"{count:,} weights in {size / 2**20:.2f} MiB ({8 * size / count:.2f} bits each), the rest in "
        f"{rest / 2**20:.2f} MiB"
    )


def pack_all(parameters: dict[str, Tensor], scheme: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All parameters, with the weights of BitNet's layers packed, and those that are not among them.

    A layer of BitNet is one with a norm of its own.
    """
    packed: dict[str, Any] = {}
    kept: dict[str, Tensor] = {}
    for name, value in parameters.items():
        if name.endswith(".weight") and f"{name.removesuffix('weight')}norm.weight" in parameters:
            packed |= {f"{name}.{part}": content for part, content in PackedWeight.contents(value, scheme).items()}
        else:
            packed[name] = kept[name] = value
    return packed, kept
