"""Make a checkpoint of this package from one of TorchScale's fairseq examples: lm_base, mt_base, mlm_base, retnet_base.

Parameters keep their names and values. Options that TorchScale reads keep their names; options that it ignores are
left out. The placement of the norms depends on TorchScale's version; it is read off the names of the parameters and
made explicit. Entries of the state dict that this package computes are left out, and the optimizer's state follows the
order in which parameters are registered here, so that training resumes.

Everything that is left out is kept in the entry torchscale_official, from which to-torchscale restores the same
checkpoint. Checkpoints that training writes later lack that entry; to-torchscale then makes one with the same
parameters and options.

Mixture-of-experts models and adaptive softmaxes are refused.
"""

import argparse

from torchscale_fairseq.tools.convert import official_format as official
from torchscale_fairseq.tools.convert.input_output import add_input_and_output

EXAMPLE = "torchscale-fairseq convert from-torchscale official.pt ours.pt"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_input_and_output(parser, "a checkpoint of TorchScale", "the checkpoint to write")
    parser.add_argument(
        "--torchscale-version",
        choices=official.VERSIONS,
        help="the version that wrote IN, to be compared with the names of its parameters",
    )
    parser.add_argument("--no-optimizer-state", action="store_true", help="leave the optimizer's state out")


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.tools.convert.torchscale_checkpoints import convert_from_torchscale

    convert_from_torchscale(options)
