"""Write the model of a checkpoint as a folder that the core alone loads, without fairseq.

The folder holds model.safetensors and config.json, for torchscale_fairseq.load_pretrained(FOLDER), and fairseq.json
with fairseq's configuration, from which from-safetensors makes a checkpoint again. The state of the interrupted
training (optimizer, position in the data, meters) is not kept. Heads that the core's model lacks (of classification,
and BEiT-3's) are in a file of their own, heads.safetensors.

Checkpoints of TorchScale are converted by from-torchscale first.
"""

import argparse

from torchscale_fairseq.tools.convert.input_output import add_input_and_output

EXAMPLE = "torchscale-fairseq convert to-safetensors runs/text/checkpoint_best.pt gpt"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_input_and_output(parser, "the checkpoint", "a new folder")


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.tools.convert.safetensors_folder import to_folder

    note = to_folder(options.input, options.output)
    print(f"wrote {options.output}: {note}")
