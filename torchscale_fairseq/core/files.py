"""Files and directories that take their name only when they are complete."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk is full, the quota is used up, or the file is larger than the system allows."""
PROBE_BYTES = 1 << 20


class WriteError(InputError):
    """A file cannot be written; the message names it, the reason and a way out."""


@contextlib.contextmanager
def write_atomically(
    path: str | Path, *, several_writers: bool = False, size_bytes: int | None = None
) -> Iterator[Path]:
    """Give a scratch path to write to, and rename it to ``path`` when the block ends.

    The content is on the disk before the file takes its name. If the block raises, the scratch file is removed, and an
    earlier file of that name is unchanged. A symbolic link is followed; a device such as /dev/stdout is written in
    place.

    Args:
        path: of the file, in a folder that exists.
        several_writers: processes may write this file at the same time; the last to finish wins.
        size_bytes: about the size of the file, if it is known; the error names it where there is no room.

    Raises:
        WriteError: there is no room, or the folder is missing or not writable.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        yield target
        return
    unique = f".{os.urandom(4).hex()}" if several_writers else ""
    scratch = target.with_name(f".{target.name}{unique}.part")
    try:
        scratch.unlink(missing_ok=True)
        yield scratch
        _flush(scratch)
        scratch.replace(target)
    except Exception as error:
        kept = " The earlier file of that name is unchanged." if target.exists() else ""
        _raise_if_unwritable(error, path, scratch, kept, size_bytes)
        raise
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()


@contextlib.contextmanager
def make_directory_atomically(path: str | Path) -> Iterator[Path]:
    """Give a new directory to fill, and rename it to ``path`` when the block ends.

    If the block raises, nothing of it is left.

    Args:
        path: of the directory, which does not exist or is empty; missing parents are made.

    Raises:
        WriteError: there is no room, the directory is not empty, or its parent is not writable.
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise WriteError(f"{path} exists and is not an empty directory; remove it or name another.")
    make_directory(target.parent)
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise _cannot_be_made(path, error) from error
    try:
        yield scratch
        scratch.chmod(0o777 & ~_umask())
        scratch.replace(target)
    except Exception as error:
        _raise_if_unwritable(error, path, scratch)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def make_directory(path: str | Path) -> None:
    """Make a directory and its parents, unless it is there.

    Raises:
        WriteError: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_made(path, error) from error


def _cannot_be_made(path: str | Path, error: OSError) -> WriteError:
    return WriteError(f"the directory {path} cannot be made: {error.strerror}; name another.")


def _raise_if_unwritable(
    error: Exception, path: str | Path, scratch: Path, kept: str = "", needed: int | None = None
) -> None:
    """Raise WriteError if the disk is to blame. Errors of libraries rarely say so; then writing more is tried."""
    size = _size(scratch)
    cause = error if isinstance(error, OSError) else _error_of_writing_more(scratch)
    if cause is None:
        return
    if cause.errno in NO_ROOM:
        free = shutil.disk_usage(scratch.parent).free
        room = f"after {size:,} bytes; {free:,} are free"
        if needed is not None:
            room = f"it takes about {needed:,} bytes, and {size + free:,} were free"
        raise WriteError(
            f"{path} cannot be written: {cause.strerror} ({room}); make room and run this again.{kept}"
        ) from error
    if cause.filename is not None and Path(cause.filename) in (scratch, scratch.parent):
        raise WriteError(f"{path} cannot be written: {cause.strerror}; name another folder.{kept}") from error


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _error_of_writing_more(path: Path) -> OSError | None:
    try:
        with (path / ".probe" if path.is_dir() else path).open("ab") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


def _flush(path: Path) -> None:
    """Some file systems say that they are full only when the content must be on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
