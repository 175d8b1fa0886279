"""Formats of lines: text with an empty line between documents, and JSON lines."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from .compression import BROKEN, decompressed, why_broken
from .reader import LONGEST_DOCUMENT, TOO_LONG, Document, Record


def numbered_lines(location: str) -> Iterator[Document]:
    """The lines of a file, as bytes without their ends; the last one says where the file is broken.

    Args:
        location: path or URL.

    Raises:
        DataError: it cannot be opened.
    """
    number = 1
    with decompressed(location) as file:
        try:
            while line := file.readline(LONGEST_DOCUMENT):
                if len(line) == LONGEST_DOCUMENT and not line.endswith(b"\n"):
                    while (rest := file.readline(LONGEST_DOCUMENT)) and not rest.endswith(b"\n"):
                        pass
                    yield Document(number, b"", TOO_LONG)
                else:
                    yield Document(number, line.removesuffix(b"\n").removesuffix(b"\r"))
                number += 1
        except BROKEN as error:
            yield Document(number, b"", why_broken(error))


class TextLines:
    """Text, a line per sentence or paragraph, and an empty line between documents."""

    name = "text"
    suffixes: tuple[str, ...] = (".txt",)
    counts = "line"
    holds_lines = True
    compressible = True

    def documents(self, location: str, field: str) -> Iterator[Document]:
        """The lines of a file; see ``Reader``."""
        for line in numbered_lines(location):
            reason = line.reason or why_no_text(line.text)
            yield line if reason is None else Document(line.number, b"", reason)


class JsonLines:
    """An object of JSON on each line."""

    name = "JSON lines"
    suffixes: tuple[str, ...] = (".jsonl", ".ndjson", ".json")
    counts = "line"
    value = "field"
    holds_lines = False
    compressible = True

    def documents(self, location: str, field: str) -> Iterator[Document]:
        """The text field of each line; see ``Reader``."""
        for record in self.records(location, [field]):
            yield _document_of_record(record, field)

    def records(self, location: str, names: Sequence[str], advice: str = "") -> Iterator[Record]:
        """The object of each line; see ``RecordReader``."""
        for line in numbered_lines(location):
            if line.reason is not None:
                yield Record(line.number, {}, line.reason)
            elif line.text.strip():
                yield record_of(line)


def record_of(line: Document) -> Record:
    """The object of JSON on a line."""
    try:
        content = json.loads(line.text)
    except UnicodeDecodeError as error:
        return Record(line.number, {}, f"byte {error.start + 1} (0x{line.text[error.start]:02x}) is not UTF-8")
    except (json.JSONDecodeError, RecursionError) as error:
        where = f": {error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        return Record(line.number, {}, f"is not JSON{where}")
    if not isinstance(content, dict):
        return Record(line.number, {}, f"is a JSON {_kind(content)} instead of an object")
    return Record(line.number, content)


def _document_of_record(record: Record, field: str) -> Document:
    if record.reason is not None:
        return Document(record.number, b"", record.reason)
    if field not in record.content:
        there = ", ".join(record.content) or "none"
        return Document(record.number, b"", f"has no field '{field}' (there: {there}); --text-field names another")
    return document_of(record.number, record.content[field], f"field '{field}'")


def document_of(number: int, value: Any, where: str) -> Document:
    """The document of a value that should be a text.

    Args:
        number: of the line or row.
        value: of the field or column.
        where: it stands, for messages.
    """
    if not isinstance(value, str):
        return Document(number, b"", f"{where} is {_kind(value)}, not a text")
    try:
        text = value.encode()
    except UnicodeEncodeError as error:
        return Document(number, b"", f"{where} has half of a surrogate pair (character {error.start + 1})")
    return Document(number, text) if len(text) <= LONGEST_DOCUMENT else Document(number, b"", TOO_LONG)


def _kind(value: Any) -> str:
    """The type of a JSON value, in JSON's words."""
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), type(value).__name__)


def why_no_text(line: bytes) -> str | None:
    """Why a line, without its end, is not text; None if it is."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8"
    if b"\0" in line:
        return "has a null byte inside"
    return "has a carriage return inside" if b"\r" in line else None
