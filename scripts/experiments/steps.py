"""Experiments that are steps of commands: they show each command, and skip the ones that are finished."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.experiments.common import ROOT
from scripts.experiments.fairseq_jobs import runnable
from scripts.show_command import as_typed
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory, write_atomically

Words = Sequence[str | Path]


def parser_of(program: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of the options that such experiments have.

    Args:
        program: name of the file.
        description: what the experiment shows.
    """
    parser = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work-dir", type=Path, default=ROOT, metavar="DIR", help="where data/ and runs/ go; default: the repository"
    )
    return parser


def step(title: str) -> None:
    """Print the heading of a step."""
    print(f"\n== {title}", flush=True)


def run(words: Words) -> None:
    """Show and run a command of fairseq or ``torchscale-fairseq``.

    Raises:
        InputError: it fails.
    """
    command = [str(word) for word in words]
    print(as_typed(command), flush=True)
    if command[0] == "torchscale-fairseq":
        started = [sys.executable, "-m", "torchscale_fairseq", *command[1:]]
    else:
        started = runnable(tuple(command))
    code = subprocess.run(started).returncode
    if code:
        raise InputError(f"{command[0]} ended with exit code {code}; mend what it says and run this again")


def make_once(directory: Path, words: Words) -> None:
    """Run a command that makes a directory, unless the directory exists."""
    if directory.exists():
        print(f"{directory} is there already")
    else:
        run(words)


def train(directory: Path, words: Words) -> None:
    """Run fairseq-train with a directory for its checkpoints and curves, unless this very training is finished."""
    logs: list[str | Path] = ["--tensorboard-logdir", directory / "tensorboard", "--log-file", directory / "train.log"]
    command: list[str | Path] = ["fairseq-train", *words, "--save-dir", directory, *logs]
    typed, finished = shlex.join(map(str, command)), directory / "finished"
    make_directory(directory)
    if finished.exists() and finished.read_text() == typed:
        print(f"{directory} has finished this training; remove that directory to train anew")
        return
    run(command)
    with write_atomically(finished) as scratch:
        scratch.write_text(typed)
