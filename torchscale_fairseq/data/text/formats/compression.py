"""Files compressed as a whole: gzip and zstd."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from .locations import opened
from .packages import imported

Open = Callable[[BinaryIO], BinaryIO]


def _gzip(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb"))


def _zstd(file: BinaryIO) -> BinaryIO:
    zstandard = imported("zstandard", "a file compressed with zstd")
    return io.BufferedReader(_Zstd(zstandard, file), 1 << 20)


class _Zstd(io.RawIOBase):
    """A decompressed stream of frames, whose end must be that of a frame: the package takes a truncated file for a
    whole one."""

    def __init__(self, package: Any, file: BinaryIO):
        self._package, self._file = package, file
        self._frame = package.ZstdDecompressor().decompressobj()
        self._begun = False
        self._kept = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._kept:
            chunk = self._frame.unused_data if self._frame.eof else b""
            chunk = chunk or self._file.read(1 << 17)
            if not chunk:
                if self._begun and not self._frame.eof:
                    raise EOFError("the file ends within a zstd frame")
                return 0
            if self._frame.eof:
                self._frame = self._package.ZstdDecompressor().decompressobj()
            self._begun = True
            try:
                self._kept = self._frame.decompress(chunk)
            except self._package.ZstdError as error:
                raise zlib.error(str(error)) from error
        size = min(len(buffer), len(self._kept))
        buffer[:size], self._kept = self._kept[:size], self._kept[size:]
        return size


COMPRESSIONS: dict[str, Open] = {".gz": _gzip, ".zst": _zstd}
"""By the last suffix of a file's name."""
BROKEN = (EOFError, gzip.BadGzipFile, zlib.error)
"""Errors of truncated or damaged files."""


def suffix_of(location: str) -> str:
    """The suffix that names the compression; empty if there is none."""
    return next((suffix for suffix in COMPRESSIONS if location.endswith(suffix)), "")


@contextmanager
def decompressed(location: str) -> Iterator[BinaryIO]:
    """Open a file to read its content, decompressed if its name says that it is compressed.

    Args:
        location: path or URL.

    Raises:
        DataError: it cannot be opened.
        ModuleNotFoundError: zstandard is needed and missing.
    """
    with opened(location) as file:
        suffix = suffix_of(location)
        yield COMPRESSIONS[suffix](file) if suffix else file


def why_broken(error: Exception) -> str:
    """A truncated or damaged file, in words."""
    if isinstance(error, EOFError):
        return "the compressed file ends too early; it is truncated"
    return f"the compressed file is damaged ({error})"
