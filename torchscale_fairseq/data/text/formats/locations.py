"""Files by path or URL. Local paths need no package; URLs are opened by fsspec, which torch brings along."""

import glob
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from torchscale_fairseq.data.problems import DataError

PATTERN = frozenset("*?[")
"""Characters of a pattern of file names."""


def is_url(location: str) -> bool:
    """Whether fsspec opens it."""
    return "://" in location


def joined(base: str, name: str) -> str:
    """A name relative to a folder; an absolute path or a URL stays as it is."""
    if is_url(name) or os.path.isabs(name):
        return name
    return posixpath.join(base, name) if is_url(base) else os.path.join(base, name)


def exists(location: str) -> bool:
    """Whether there is a file or a folder.

    Raises:
        DataError: the protocol of the URL is unknown, or its package is missing.
    """
    if not is_url(location):
        return os.path.exists(location)
    system, path = _system(location)
    return bool(system.exists(path))


def files_like(pattern: str) -> list[str]:
    """The files or folders that a pattern of names matches, sorted.

    Raises:
        DataError: the protocol of the URL is unknown, or its package is missing.
    """
    if not is_url(pattern):
        return sorted(glob.glob(pattern))
    system, path = _system(pattern)
    return sorted(system.unstrip_protocol(found) for found in system.glob(path))


def size_of(location: str) -> int:
    """Bytes of a file.

    Raises:
        DataError: there is none.
    """
    with reading(location):
        return os.stat(location).st_size if not is_url(location) else int(_info(location).get("size") or 0)


def stamp_of(location: str) -> str:
    """A text that changes when the file does.

    Raises:
        DataError: there is none.
    """
    with reading(location):
        if not is_url(location):
            found = os.stat(location)
            return f"{found.st_size} {found.st_mtime_ns}"
        system, path = _system(location)
        return str(system.ukey(path))


@contextmanager
def opened(location: str, advice: str = "") -> Iterator[BinaryIO]:
    """Open a file to read its bytes.

    Args:
        location: of the file.
        advice: a clause for the end of the error.

    Raises:
        DataError: it cannot be opened.
    """
    with reading(location, advice):
        if is_url(location):
            system, path = _system(location)
            file = system.open(path, "rb")
        else:
            file = open(location, "rb")  # noqa: SIM115
    with file:
        yield cast(BinaryIO, file)


def read_bytes(location: str, advice: str = "") -> bytes:
    """The content of a file.

    Args:
        location: of the file.
        advice: a clause for the end of the error.

    Raises:
        DataError: it cannot be read.
    """
    with reading(location, advice), opened(location, advice) as file:
        return file.read()


@contextmanager
def reading(location: str, advice: str = "") -> Iterator[None]:
    """Turn errors of the file system into a DataError that names the file.

    Raises:
        DataError: the block failed.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise DataError(f"{location} cannot be read: {reason}{advice}.") from error


def _info(location: str) -> dict[str, Any]:
    system, path = _system(location)
    return dict(system.info(path))


def _system(location: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:  # the protocol's package is missing, or there is no such protocol
        raise DataError(f"{location} cannot be opened: {error}; install the protocol's package, or copy it.") from error
    return system, str(path)
