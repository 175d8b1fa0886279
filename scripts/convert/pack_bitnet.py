#!/usr/bin/env python
"""Writes a checkpoint of a BitNet model with its weights packed: 1.6 bits each for b1.58, 1 bit for b1.

fairseq-generate, fairseq-eval-lm and their siblings read it like any other, in the memory of the packed weights, and
compute what the trained model computes in evaluation. It cannot be trained: the weights that training goes on from stay
in the checkpoint that was packed. Embeddings, norms and output projection stay as they are, and so do their bytes.
"""

import argparse
from pathlib import Path
from typing import Any

from checkpoint_files import build, model_options
from command_line import converter_parser
from torch import Tensor

from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.checkpoints.writing import write_checkpoint
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.layers.bit_linear import PackedWeight
from torchscale_fairseq.core.reporting import run_command


def main() -> int:
    options = parse_options()
    note = pack_checkpoint(options.input, options.output)
    print(f"wrote {options.output}: {note}")
    return 0


def parse_options() -> argparse.Namespace:
    return converter_parser(
        "pack_bitnet.py",
        __doc__,
        input_help="a checkpoint trained with --bitnet",
        output_help="the checkpoint to write",
    ).parse_args()


def pack_checkpoint(path: Path, output: Path) -> str:
    """Write the checkpoint; returns what there is to tell about it.

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
    packed, kept = {}, {}
    for name, value in parameters.items():
        if name.endswith(".weight") and f"{name.removesuffix('weight')}norm.weight" in parameters:
            packed |= {f"{name}.{part}": content for part, content in PackedWeight.contents(value, scheme).items()}
        else:
            packed[name] = kept[name] = value
    return packed, kept


if __name__ == "__main__":
    run_command(main)
