"""Make a checkpoint of TorchScale's fairseq examples from one of this package.

A checkpoint that from-torchscale made is restored as it was. Others keep the names and values of their parameters and
the options that TorchScale has; models that TorchScale lacks are refused. The optimizer's state follows the order in
which TorchScale registers parameters.
"""

import argparse

from torchscale_fairseq.tools.convert.input_output import add_input_and_output

EXAMPLE = "torchscale-fairseq convert to-torchscale ours.pt restored.pt"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_input_and_output(parser, "a checkpoint of this package", "the checkpoint to write")
    parser.add_argument("--no-optimizer-state", action="store_true", help="leave the optimizer's state out")


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.tools.convert.torchscale_checkpoints import convert_to_torchscale

    convert_to_torchscale(options)
