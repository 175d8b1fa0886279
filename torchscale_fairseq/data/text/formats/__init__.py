"""Formats of text: one table of readers, chosen by the name of a file."""

from collections.abc import Sequence

from .columns import Arrow, Parquet
from .compression import suffix_of
from .lines import JsonLines, TextLines
from .reader import Document, Reader, Record, RecordReader

__all__ = [
    "READERS",
    "RECORDS",
    "TEXT",
    "Document",
    "Reader",
    "Record",
    "RecordReader",
    "reader_of",
    "record_reader_of",
    "suffixes",
    "uncompressed",
]

TEXT = TextLines()
RECORDS: tuple[RecordReader, ...] = (JsonLines(), Parquet(), Arrow())
READERS: tuple[Reader, ...] = (TEXT, *RECORDS)


def reader_of(location: str) -> Reader:
    """The reader of a file, by its suffix; that of text for a file of another name, as TorchScale names them."""
    return next((reader for reader in READERS if uncompressed(location).endswith(reader.suffixes)), TEXT)


def record_reader_of(location: str) -> RecordReader:
    """The reader of a file of records, by its suffix; that of JSON lines for a file of another name."""
    return next((reader for reader in RECORDS if uncompressed(location).endswith(reader.suffixes)), RECORDS[0])


def uncompressed(location: str) -> str:
    """The name of a file without the suffix of its compression."""
    return location.removesuffix(suffix_of(location))


def suffixes(readers: Sequence[Reader] = READERS) -> list[str]:
    """All ends of file names that one of the readers reads, such as .jsonl.gz."""
    from .compression import COMPRESSIONS

    return [
        suffix + compression
        for reader in readers
        for suffix in reader.suffixes
        for compression in ("", *(COMPRESSIONS if reader.compressible else ()))
    ]
