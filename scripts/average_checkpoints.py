"""Averages the parameters of several checkpoints of fairseq into one that fairseq-generate reads."""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from torchscale_fairseq.checkpoints.reading import load_checkpoint
from torchscale_fairseq.checkpoints.writing import write_checkpoint
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.reporting import run_command

EPOCH_NAME = re.compile(r"checkpoint(\d+)\.pt")
UPDATE_NAME = re.compile(r"checkpoint_\d+_(\d+)\.pt")


def main() -> int:
    options = parse_options()
    paths = choose_paths(options)
    write_checkpoint(average(paths), options.output)
    print(f"wrote {options.output}, the average of {', '.join(map(str, paths))}")
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="average_checkpoints.py", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--inputs", type=Path, nargs="+", required=True, metavar="PATH", help="checkpoints, or one directory"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the averaged checkpoint")
    newest = parser.add_mutually_exclusive_group()
    newest.add_argument("--num-epoch-checkpoints", type=int, metavar="N", help="newest N checkpointEPOCH.pt")
    newest.add_argument("--num-update-checkpoints", type=int, metavar="N", help="newest N checkpoint_EPOCH_UPDATE.pt")
    parser.add_argument("--checkpoint-upper-bound", type=int, metavar="N", help="leave out epochs or updates beyond N")
    options = parser.parse_args()
    options.option, options.count, options.pattern = next(
        (
            (f"--num-{name}-checkpoints", count, pattern)
            for name, count, pattern in (
                ("epoch", options.num_epoch_checkpoints, EPOCH_NAME),
                ("update", options.num_update_checkpoints, UPDATE_NAME),
            )
            if count is not None
        ),
        (None, None, None),
    )
    if options.count is not None and options.count < 1:
        parser.error(f"{options.option} must be at least 1")
    if options.checkpoint_upper_bound is not None and options.count is None:
        parser.error("--checkpoint-upper-bound needs --num-epoch-checkpoints or --num-update-checkpoints")
    return options


def choose_paths(options: argparse.Namespace) -> list[Path]:
    """Returns the named files, or the newest ones of the directory, newest first."""
    inputs: list[Path] = options.inputs
    if options.count is None:
        for path in inputs:
            if path.is_dir():
                raise InputError(
                    f"--inputs {path} is a directory; add --num-epoch-checkpoints or --num-update-checkpoints"
                )
        return inputs
    if len(inputs) != 1 or not inputs[0].is_dir():
        raise InputError(f"{options.option} takes one directory; --inputs names {' '.join(map(str, inputs))}")
    numbered = [
        (int(match[1]), path)
        for path in inputs[0].iterdir()
        if (match := options.pattern.fullmatch(path.name))
        and (options.checkpoint_upper_bound is None or int(match[1]) <= options.checkpoint_upper_bound)
    ]
    if len(numbered) < options.count:
        present = ", ".join(sorted(path.name for path in inputs[0].glob("checkpoint*.pt"))) or "no checkpoint"
        raise InputError(
            f"{options.option} {options.count}: --inputs {inputs[0]} has {len(numbered)} such checkpoints (it holds "
            f"{present}); ask for fewer or the other kind, or train with --keep-last-epochs or --keep-interval-updates"
        )
    return [path for _, path in sorted(numbered, reverse=True)[: options.count]]


def average(paths: Iterable[Path]) -> dict[str, Any]:
    """Returns the first checkpoint with averaged parameters and without the optimizer's state.

    Raises:
        InputError: the checkpoints' parameters differ in name or shape, or whole numbers in value.
    """
    first_path, *other_paths = paths
    state = load_checkpoint(first_path)
    parameters: dict[str, torch.Tensor] = state["model"]
    sums = {name: widened(value) for name, value in parameters.items()}
    for path in other_paths:
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


def widened(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value


def check_same_parameters(
    ours: dict[str, torch.Tensor], our_path: Path, theirs: dict[str, torch.Tensor], their_path: Path
) -> None:
    for name in sorted(ours.keys() ^ theirs.keys()):
        has, lacks = (our_path, their_path) if name in ours else (their_path, our_path)
        raise InputError(f"{has} has the parameter {name}, {lacks} has not; average runs of one architecture")
    for name, value in ours.items():
        other = theirs[name]
        if value.shape != other.shape:
            shapes = f"{tuple(value.shape)} in {our_path} and {tuple(other.shape)} in {their_path}"
            raise InputError(f"the parameter {name} is {shapes}; average runs of one architecture")
        if not value.is_floating_point() and not torch.equal(value, other):
            raise InputError(f"{name} holds whole numbers that differ between {our_path} and {their_path}")


if __name__ == "__main__":
    run_command(main)
