"""Average the parameters of several checkpoints into one that fairseq-generate and its siblings read."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.tools.options import positive
from torchscale_fairseq.tools.progress import progress

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = (
    "torchscale-fairseq average-checkpoints --inputs runs/text --num-update-checkpoints 2 --output runs/text/average.pt"
)
EPOCH_NAME = re.compile(r"checkpoint(\d+)\.pt")
UPDATE_NAME = re.compile(r"checkpoint_\d+_(\d+)\.pt")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--inputs",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="checkpoints to average, or one directory of them",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the checkpoint to write")
    newest = parser.add_mutually_exclusive_group()
    newest.add_argument(
        "--num-epoch-checkpoints", type=positive, metavar="N", help="average the newest N files checkpointEPOCH.pt"
    )
    newest.add_argument(
        "--num-update-checkpoints",
        type=positive,
        metavar="N",
        help="average the newest N files checkpoint_EPOCH_UPDATE.pt",
    )
    parser.add_argument("--checkpoint-upper-bound", type=int, metavar="N", help="leave out epochs or updates after N")


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.checkpoints.writing import write_checkpoint

    paths = choose_paths(options)
    write_checkpoint(average(paths), options.output)
    print(f"wrote {options.output}, the average of {', '.join(map(str, paths))}")


def choose_paths(options: argparse.Namespace) -> list[Path]:
    """The named files, or the newest ones of the directory, newest first.

    Raises:
        InputError: the options contradict each other, or the directory holds too few.
    """
    if options.num_epoch_checkpoints is not None:
        return _newest("--num-epoch-checkpoints", options.num_epoch_checkpoints, EPOCH_NAME, options)
    if options.num_update_checkpoints is not None:
        return _newest("--num-update-checkpoints", options.num_update_checkpoints, UPDATE_NAME, options)
    if options.checkpoint_upper_bound is not None:
        raise InputError("--checkpoint-upper-bound needs --num-epoch-checkpoints or --num-update-checkpoints")
    inputs: list[Path] = options.inputs
    for path in inputs:
        if path.is_dir():
            raise InputError(f"--inputs {path} is a directory; add --num-epoch-checkpoints or --num-update-checkpoints")
    return inputs


def _newest(option: str, count: int, name: re.Pattern[str], options: argparse.Namespace) -> list[Path]:
    inputs: list[Path] = options.inputs
    if len(inputs) != 1 or not inputs[0].is_dir():
        raise InputError(f"{option} takes one directory; --inputs names {' '.join(map(str, inputs))}")
    numbered = [
        (int(match[1]), path)
        for path in inputs[0].iterdir()
        if (match := name.fullmatch(path.name))
        and (options.checkpoint_upper_bound is None or int(match[1]) <= options.checkpoint_upper_bound)
    ]
    if len(numbered) < count:
        present = ", ".join(sorted(path.name for path in inputs[0].glob("checkpoint*.pt"))) or "no checkpoint"
        raise InputError(
            f"{option} {count}: --inputs {inputs[0]} has {len(numbered)} such checkpoints (it holds {present}); use a "
            "lower number or the other option, or train with --keep-last-epochs or --keep-interval-updates"
        )
    return [path for _, path in sorted(numbered, reverse=True)[:count]]


def average(paths: Sequence[Path]) -> dict[str, Any]:
    """The first checkpoint with averaged parameters and without the optimizer's state.

    Raises:
        InputError: the checkpoints' parameters differ in name or shape, or whole numbers in value.
    """
    from torchscale_fairseq.checkpoints.reading import load_checkpoint

    first_path, *other_paths = paths
    state = load_checkpoint(first_path)
    parameters: dict[str, Tensor] = state["model"]
    sums = {name: widened(value) for name, value in parameters.items()}
    for path in progress(other_paths, "reading", "checkpoint"):
        others = load_checkpoint(path)["model"]
        check_same_parameters(parameters, first_path, others, path)
        for name, value in others.items():
            if value.is_floating_point():
                sums[name] += value
    count = 1 + len(other_paths)
    state["model"] = {
        name: (sums[name] / count).to(value.dtype) if value.is_floating_point() else value
        for name, value in parameters.items()
    }
    state["last_optimizer_state"] = None
    return state


def widened(value: "Tensor") -> "Tensor":
    return value.double() if value.is_floating_point() else value


def check_same_parameters(
    ours: "dict[str, Tensor]", our_path: Path, theirs: "dict[str, Tensor]", their_path: Path
) -> None:
    for name in sorted(ours.keys() ^ theirs.keys()):
        has, lacks = (our_path, their_path) if name in ours else (their_path, our_path)
        raise InputError(f"{has} has the parameter {name}, {lacks} has not; average runs of one architecture")
    for name, value in ours.items():
        other = theirs[name]
        if value.shape != other.shape:
            shapes = f"{tuple(value.shape)} in {our_path} and {tuple(other.shape)} in {their_path}"
            raise InputError(f"the parameter {name} is {shapes}; average runs of one architecture")
        if not value.is_floating_point() and not value.equal(other):
            raise InputError(f"{name} holds whole numbers that differ between {our_path} and {their_path}")
