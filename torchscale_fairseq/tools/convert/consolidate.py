"""Join a sharded checkpoint (--ddp-backend fully_sharded) and the folder of its tensors into one file.

Stock fairseq reads the file without this package's help, and any number of processes resumes from it.
"""

import argparse

from torchscale_fairseq.tools.convert.input_output import add_input_and_output

EXAMPLE = "torchscale-fairseq convert consolidate runs/fully_sharded/checkpoint_last.pt runs/fully_sharded/whole.pt"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_input_and_output(parser, "the checkpoint, next to its folder shards/", "the file to write")


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.checkpoints.distributed import ENTRY, consolidate
    from torchscale_fairseq.checkpoints.reading import CheckpointError, read_mapped

    if ENTRY not in read_mapped(options.input):
        raise CheckpointError(f"{options.input} has no folder of tensors: it is one file already")
    consolidate(options.input, options.output, read_mapped)
    print(f"wrote {options.output}")
