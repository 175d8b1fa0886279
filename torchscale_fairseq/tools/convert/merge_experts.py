"""Join a checkpoint that was written with --moe-checkpoint-format sharded and its experts into one file.

Any number of processes resumes from that file, and every command of fairseq reads it without the folder experts/.
"""

import argparse

from torchscale_fairseq.tools.convert.input_output import add_input_and_output

EXAMPLE = "torchscale-fairseq convert merge-experts runs/sharded/checkpoint_last.pt runs/sharded/merged.pt"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_input_and_output(parser, "the checkpoint, next to its folder experts/", "the file to write")


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.checkpoints.reading import CheckpointError, load_checkpoint, read_mapped
    from torchscale_fairseq.checkpoints.shards import ENTRY
    from torchscale_fairseq.checkpoints.writing import write_checkpoint

    if ENTRY not in read_mapped(options.input):
        raise CheckpointError(f"{options.input} has no experts in files of their own: nothing to merge")
    state = load_checkpoint(options.input)
    write_checkpoint(state, options.output)
    print(f"wrote {options.output}")
