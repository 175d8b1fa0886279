"""Programs with a time limit, and programs whose log is shown as it comes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

GRACE = 45
"""Seconds for a program to end its own processes: torch's launcher kills its after 30."""
OF_A_LOG = re.compile(r"\d{4}-\d\d-\d\d [\d:]+ \| ")
"""The beginning of a line of fairseq's log."""


class RunError(Exception):
    """A program failed, or took too long; the text says why in one line."""


def output_of(seconds: float, words: Sequence[str], output: Path, environment: Mapping[str, str] | None = None) -> str:
    """Output and errors of a program, which also go to a file.

    Args:
        seconds: the time limit.
        words: the program and its arguments.
        output: the file.
        environment: further variables.

    Raises:
        RunError: it failed, or took too long.
    """
    status = run_within(seconds, words, output, environment=environment)
    text = output.read_text()
    if status is None:
        raise RunError(f"took longer than {seconds:g} s")
    if status:
        raise RunError(f"failed: {error_line(text)[-100:]}")
    return text


def error_line(text: str) -> str:
    """The last error in the output of a program, or its last line; summaries of torch's launcher do not count."""
    lines = text.strip().splitlines() or ["no output"]
    errors = [line for line in lines if ("Error: " in line or "fairseq-train: " in line) and "ChildFailed" not in line]
    return (errors or lines)[-1].strip()


def run_within(
    seconds: float,
    words: Sequence[str],
    output: Path,
    *,
    environment: Mapping[str, str] | None = None,
    grace: float = GRACE,
) -> int | None:
    """Run a program, whose output and errors go to a file.

    A program that takes too long gets SIGTERM before SIGKILL. torch's launcher starts its processes in sessions of
    their own, and only the launcher can end them.

    Args:
        seconds: the time limit.
        words: the program and its arguments.
        output: the file.
        environment: further variables.
        grace: seconds between SIGTERM and SIGKILL.

    Returns:
        The exit status, or None if the program took too long.
    """
    with output.open("w") as file:
        run = subprocess.Popen(
            words,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            return run.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(run, grace)


def _end(run: subprocess.Popen[bytes], grace: float) -> None:
    """End a program that may have ended."""
    if run.poll() is not None:
        return
    os.killpg(run.pid, signal.SIGTERM)
    try:
        run.wait(grace)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def shown_lines(run: "subprocess.Popen[str]") -> Iterator[str]:
    """The output of a program that runs, line by line; those of a log also go to stderr."""
    assert run.stdout is not None
    for line in run.stdout:
        if OF_A_LOG.match(line):
            print(line, end="", file=sys.stderr, flush=True)
        yield line
