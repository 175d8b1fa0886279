#!/usr/bin/env python
"""Bring the experts of a checkpoint written with --moe-checkpoint-format sharded back into one file, which any number
of processes resumes and every command of fairseq reads by itself."""

import argparse

from command_line import converter_parser

from torchscale_fairseq.checkpoints.reading import CheckpointError, load_checkpoint, read_mapped
from torchscale_fairseq.checkpoints.shards import ENTRY
from torchscale_fairseq.checkpoints.writing import write_checkpoint
from torchscale_fairseq.core.reporting import run_command


def parse_options() -> argparse.Namespace:
    return converter_parser(
        "merge_experts.py",
        __doc__,
        input_help="the checkpoint, beside its folder experts/",
        output_help="the file to write",
    ).parse_args()


def main() -> int:
    options = parse_options()
    if ENTRY not in read_mapped(options.input):
        raise CheckpointError(f"{options.input} has no experts in files of their own: nothing to merge")
    state = load_checkpoint(options.input)
    write_checkpoint(state, options.output)
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    run_command(main)
