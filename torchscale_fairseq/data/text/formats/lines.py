"""Formats of lines: text with an empty line between documents, and JSON lines."""

import json
from collections.abc import Iterator
from typing import Any

from .compression import BROKEN, decompressed, why_broken
from .reader import LONGEST_DOCUMENT, TOO_LONG, Document


def numbered_lines(location: str, advice: str = "") -> Iterator[Document]:
    """The lines of a file, as bytes without their ends; the last one says where the file is broken.

    Args:
        location: path or URL.
        advice: a clause for the end of the error if it cannot be opened.

    Raises:
        DataError: it cannot be opened.
    """
    number = 1
    with decompressed(location, advice) as file:
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
    holds_lines = False
    compressible = True

    def documents(self, location: str, field: str) -> Iterator[Document]:
        """The text field of each line; see ``Reader``."""
        for line in numbered_lines(location):
            if line.reason is not None:
                yield line
            elif line.text.strip():
                yield _document_of_json(line, field)


def _document_of_json(line: Document, field: str) -> Document:
    try:
        content = json.loads(line.text)
    except UnicodeDecodeError as error:
        return Document(line.number, b"", f"byte {error.start + 1} (0x{line.text[error.start]:02x}) is not UTF-8")
    except (json.JSONDecodeError, RecursionError) as error:
        where = f": {error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        return Document(line.number, b"", f"is not JSON{where}")
    if not isinstance(content, dict):
        return Document(line.number, b"", f"is a JSON {_kind(content)} instead of an object")
    if field not in content:
        there = ", ".join(content) or "none"
        return Document(line.number, b"", f"has no field '{field}' (there: {there}); --text-field names another")
    return document_of(line.number, content[field], f"field '{field}'")


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
