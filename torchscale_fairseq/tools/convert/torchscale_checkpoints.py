"""Checkpoints of TorchScale's fairseq examples converted to this package's, or back, with the optimizer's state."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.checkpoints.writing import write_checkpoint
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.tools.convert.checkpoint_files import Conversion
from torchscale_fairseq.tools.convert.official_to_ours import to_ours
from torchscale_fairseq.tools.convert.optimizer_order import UnknownLayout, reordered
from torchscale_fairseq.tools.convert.ours_to_official import to_official


def convert_from_torchscale(options: argparse.Namespace) -> None:
    """Convert a checkpoint of TorchScale.

    Args:
        options: of the subcommand from-torchscale.

    Raises:
        InputError: it cannot be converted.
    """
    state = load_checkpoint(options.input)
    _write(state, to_ours(state, options.input, options.torchscale_version), options)


def convert_to_torchscale(options: argparse.Namespace) -> None:
    """Convert a checkpoint of this package.

    Args:
        options: of the subcommand to-torchscale.

    Raises:
        InputError: it cannot be converted.
    """
    state = load_checkpoint(options.input)
    _write(state, to_official(state, options.input), options)


def _write(state: Mapping[str, Any], conversion: Conversion, options: argparse.Namespace) -> None:
    optimizer = None
    if not options.no_optimizer_state:
        optimizer = optimizer_state(state.get("last_optimizer_state"), conversion, state["model"], options.input)
    write_checkpoint({**conversion.state, "last_optimizer_state": optimizer}, options.output)
    print(f"wrote {options.output}: {len(conversion.state['model'])} tensors")
    for note in conversion.notes:
        print(note)


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
