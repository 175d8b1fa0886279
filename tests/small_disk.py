"""A file system that is full after some bytes."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A new folder inside ``folder`` on a file system of its own; the test is skipped where mounting is not permitted.

    Args:
        size: of the file system, such as "1m".
    """
    mounted = folder / "small_disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mounted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"no small file system: {error}")
    if done.returncode:
        pytest.skip(f"no small file system: {done.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Write a file that leaves so many bytes free, to the page; removing it makes room again."""
    filler = disk / ".filler"
    written = 0
    block = bytes(4096)
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            written += file.write(block)
    with filler.open("rb+") as file:
        file.truncate(max(0, written - left))
    return filler
