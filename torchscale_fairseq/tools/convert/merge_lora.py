"""Merge the adapters of a checkpoint (--lora-rank) into the weights of the checkpoint that they were trained on.

Every command reads the result like a checkpoint that was trained without adapters. The merged model computes the same
outputs as the adapted one.
"""

import argparse
from pathlib import Path

from torchscale_fairseq.tools.convert.input_output import add_input_and_output

EXAMPLE = "torchscale-fairseq convert merge-lora runs/adapters/checkpoint_best.pt runs/adapters/merged.pt"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_input_and_output(parser, "a checkpoint trained with --lora-rank", "the checkpoint to write")
    parser.add_argument(
        "--base", type=Path, help="the checkpoint that the adapters were trained on (default: its path in training)"
    )


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.tools.convert.lora_merging import merge_checkpoint

    print(f"wrote {options.output}: {merge_checkpoint(options.input, options.output, options.base)}")
