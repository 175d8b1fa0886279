"""Brings a checkpoint of TorchScale's fairseq examples (lm_base, mt_base, mlm_base, retnet_base) into ours, or back.

Parameters keep their names and values. What changes are the options: those that TorchScale reads keep their names,
those that it ignores are left out, and the placement of the norms, which depends on TorchScale's version, is taken
from the names of the parameters and made explicit. Entries of the state dict that this package computes are left out,
and the optimizer's state follows the order in which parameters are registered here, so that training resumes.

All that is left out is kept beside, in the entry torchscale_official, so that --to-official gives back the same
checkpoint. Training that goes on writes checkpoints without that entry; of them, --to-official makes one with the
same parameters and options.

Mixture-of-experts models and adaptive softmaxes are refused.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import official_format as official
from checkpoint_files import Conversion
from command_line import converter_parser
from official_to_ours import to_ours
from optimizer_order import UnknownLayout, reordered
from ours_to_official import to_official
from torch import Tensor

from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.checkpoints.writing import write_checkpoint
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.reporting import run_command


def main() -> int:
    options = parse_options()
    state = load_checkpoint(options.input)
    if options.to_official:
        conversion = to_official(state, options.input)
    else:
        conversion = to_ours(state, options.input, options.torchscale_version)
    converted = {
        **conversion.state,
        "last_optimizer_state": None
        if options.no_optimizer_state
        else optimizer_state(state.get("last_optimizer_state"), conversion, state["model"], options.input),
    }
    write_checkpoint(converted, options.output)
    print(f"wrote {options.output}: {len(converted['model'])} tensors")
    for note in conversion.notes:
        print(note)
    return 0


def parse_options() -> argparse.Namespace:
    parser = converter_parser("torchscale_checkpoint.py", __doc__, output_help="the converted checkpoint")
    parser.add_argument("--to-official", action="store_true", help="from ours to TorchScale's")
    parser.add_argument(
        "--torchscale-version",
        choices=official.VERSIONS,
        help="which TorchScale made IN, to be compared with what the names of its parameters tell",
    )
    parser.add_argument("--no-optimizer-state", action="store_true", help="leave the optimizer's state out")
    options = parser.parse_args()
    if options.to_official and options.torchscale_version:
        parser.error("--torchscale-version says what made an official checkpoint; --to-official takes one of ours")
    return options


def optimizer_state(
    state: Mapping[str, Any] | None, conversion: Conversion, parameters: Mapping[str, Tensor], path: Path
) -> dict[str, Any] | None:
    """The optimizer's state in the order of the converted model's parameters, if there is one.

    Raises:
        InputError: it is of an unknown kind.
    """
    if state is None:
        return None
    sizes = {name: parameters[name].numel() for name in conversion.order_before}
    try:
        return reordered(state, sizes, conversion.order_after)
    except UnknownLayout as error:
        raise InputError(
            f"{path}: the optimizer's state cannot be brought into the order of the parameters: {error}; "
            "add --no-optimizer-state"
        ) from None


if __name__ == "__main__":
    run_command(main)
