"""Protocols of readers: the documents of a file of some format, or its records."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

LONGEST_DOCUMENT = 1 << 26
TOO_LONG = f"is longer than {LONGEST_DOCUMENT:,} bytes"


class Document(NamedTuple):
    """A document, or a line of one, in a file."""

    number: int
    """Number of its line or row, from 1 on."""
    text: bytes
    """UTF-8; empty for an empty line, which ends a document, and for an invalid one."""
    reason: str | None = None
    """Why it is invalid."""


class Record(NamedTuple):
    """An object of JSON, or a row of columns."""

    number: int
    """Number of its line or row, from 1 on."""
    content: Mapping[str, Any]
    """Values by field or column; empty if invalid."""
    reason: str | None = None
    """Why it is invalid."""


class Reader(Protocol):
    """A format."""

    name: str
    suffixes: tuple[str, ...]
    """Ends of file names, without those of compression."""
    counts: str
    """The unit of a document's number: line or row."""
    holds_lines: bool
    """Texts are lines, and empty ones end documents. Otherwise each text is a document."""
    compressible: bool
    """Whether a file may be compressed as a whole."""

    def documents(self, location: str, field: str) -> Iterator[Document]:
        """Read a file from its beginning, in bounded memory.

        Args:
            location: path or URL.
            field: name of the field or column that holds the text, where the format has such.

        Raises:
            DataError: the file cannot be read, or is not of this format.
            ModuleNotFoundError: a package is missing; the message names the extra that has it.
        """


class RecordReader(Reader, Protocol):
    """A format of records."""

    value: str
    """A value of a record, for messages: field or column."""

    def records(self, location: str, names: Sequence[str], advice: str = "") -> Iterator[Record]:
        """Read a file from its beginning, in bounded memory.

        Args:
            location: path or URL.
            names: of the fields or columns to read, of which columns need at least one; objects of JSON are read whole.
            advice: a clause for the end of the error if the file has none of the columns.

        Raises:
            DataError: the file cannot be read, is not of this format, or has none of the columns.
            ModuleNotFoundError: a package is missing; the message names the extra that has it.
        """
