"""Formats of text: one table of readers, chosen by the name of a file."""

from .columns import Arrow, Parquet
from .compression import suffix_of
from .lines import JsonLines, TextLines
from .reader import Document, Reader

__all__ = ["READERS", "TEXT", "Document", "Reader", "reader_of", "suffixes"]

TEXT = TextLines()
READERS: tuple[Reader, ...] = (TEXT, JsonLines(), Parquet(), Arrow())


def reader_of(location: str) -> Reader:
    """The reader of a file, by its suffix; that of text for a file of another name, as TorchScale names them."""
    bare = location.removesuffix(suffix_of(location))
    return next((reader for reader in READERS if bare.endswith(reader.suffixes)), TEXT)


def suffixes() -> list[str]:
    """All ends of file names that have a reader, such as .jsonl.gz."""
    from .compression import COMPRESSIONS

    return [
        suffix + compression
        for reader in READERS
        for suffix in reader.suffixes
        for compression in ("", *(COMPRESSIONS if reader.compressible else ()))
    ]
