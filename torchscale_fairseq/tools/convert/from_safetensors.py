"""Make a checkpoint of fairseq from a folder that to-safetensors wrote.

It has the same parameters, to the bit, and the same configuration as the checkpoint that the folder was made from. It
serves fairseq-generate and its siblings, and as a start for training (--finetune-from-model).
"""

import argparse

from torchscale_fairseq.tools.convert.input_output import add_input_and_output

EXAMPLE = "torchscale-fairseq convert from-safetensors gpt gpt.pt"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_input_and_output(parser, "the folder", "the checkpoint to write")


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.tools.convert.safetensors_folder import to_checkpoint

    note = to_checkpoint(options.input, options.output)
    print(f"wrote {options.output}: {note}")
