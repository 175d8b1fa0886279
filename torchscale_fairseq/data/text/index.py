"""The index of a shard: how many bytes and tokens each of its lines has.

It is what makes any sample of a shard findable without reading what comes before. It depends on the text and the
SentencePiece model alone, not on the length of samples, their order or the number of processes; it is made once, by
``torchscale-fairseq data shard-corpus`` or by the first run that needs it, at the speed of the tokenizer.

A *unit* is what is tokenized at once: a line, or a piece of a line longer than :data:`LONGEST_UNIT` bytes, cut at a
space. A *part* is a run of some 32 MiB of lines; no sample reaches from one part into the next, so that memory is
bounded by the part, however large the shard is.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from torchscale_fairseq.core.files import make_directory, write_atomically
from torchscale_fairseq.data.text.formats.lines import why_no_text
from torchscale_fairseq.data.text.formats.reader import LONGEST_DOCUMENT, TOO_LONG

UNIT = np.dtype([("bytes", "<u4"), ("tokens", "<u4"), ("ends", "?")])
"""Bytes in the file, line end included; tokens, </s> included; whether a line ends here. Empty and invalid lines have
no tokens."""
LONGEST_UNIT = 2048
LONGEST_LINE = LONGEST_DOCUMENT
PART_BYTES = 1 << 25
CHUNK_BYTES = 1 << 20
KEPT_MESSAGES = 100
VERSION = 1

Encode = Callable[[Sequence[bytes]], list[list[int]]]
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Part:
    """A run of lines of a shard."""

    first_unit: int
    units: int
    first_byte: int
    bytes: int
    tokens: int


@dataclass(frozen=True)
class ShardIndex:
    """The index of one shard, whose units stay on disk."""

    path: Path
    parts: tuple[Part, ...]
    invalid: tuple[tuple[int, str], ...]
    """Line (or row) and reason, of the first invalid lines."""
    invalid_count: int
    counts: str = "line"
    """The numbers of invalid lines count lines or rows."""

    def units(self, first: int = 0, count: int = -1) -> NDArray[Any]:
        """Read ``count`` units (-1: all) from the first on, as :data:`UNIT`. They are read instead of mapped, so that a
        process does not hold the whole index in the end."""
        return np.fromfile(self.path, UNIT, count, offset=first * UNIT.itemsize)


def unit_text(unit: bytes) -> bytes:
    """The tokenized part of a unit: all but its line end, or the space at which a long line was cut."""
    if unit.endswith(b"\n"):
        return unit[:-1].removesuffix(b"\r")
    return unit.removesuffix(b" ")


def split_line(line: bytes) -> list[bytes]:
    """The units of a line, whose concatenation it is."""
    units, start = [], 0
    while len(line) - start > LONGEST_UNIT:
        cut = line.rfind(b" ", start + 1, start + LONGEST_UNIT) + 1
        if cut == 0:
            cut = start + LONGEST_UNIT
            while line[cut] & 0xC0 == 0x80 and cut > start + LONGEST_UNIT - 4:  # inside a character
                cut -= 1
        units.append(line[start:cut])
        start = cut
    return [*units, line[start:]]


class IndexPath:
    """Where the index of a shard of text lies, and the shard itself, which is tokenized anew where it is read."""

    def __init__(self, folder: Path, shard: Path):
        self.shard = str(shard)
        self.header = folder / f"{shard.name}.json"
        self.units = folder / f"{shard.name}.units"
        self.content = str(shard)
        """The file that samples are read from, by bytes."""

    @property
    def size(self) -> int:
        """Bytes of the shard."""
        return Path(self.shard).stat().st_size

    def is_current(self) -> bool:
        """Whether it was made, and of the shard as it is."""
        try:
            header, shard = self.header.stat(), Path(self.shard).stat()
            content = json.loads(self.header.read_text())
        except (OSError, ValueError):
            return False
        return (
            header.st_mtime >= shard.st_mtime
            and content.get("version") == VERSION
            and content.get("bytes") == shard.st_size
        )

    def load(self) -> ShardIndex:
        """Open it."""
        header = json.loads(self.header.read_text())
        parts = tuple(Part(**part) for part in header["parts"])
        invalid = tuple((line, reason) for line, reason in header["invalid"])
        return ShardIndex(self.units, parts, invalid, header["invalid_count"], header.get("counts", "line"))

    def build(self, encode: Encode, progress: Progress = lambda _: None) -> None:
        """Index the shard.

        Args:
            encode: the tokenizer.
            progress: called with the number of bytes that were read.

        Raises:
            WriteError: the index cannot be written.
            OSError: the shard cannot be read.
        """
        make_directory(self.header.parent)
        with (
            write_atomically(self.units, several_writers=True) as scratch,
            scratch.open("wb") as units,
            open(self.shard, "rb") as text,
        ):
            header = _Builder(encode, units).run(text, progress)
        with write_atomically(self.header, several_writers=True) as scratch:
            scratch.write_text(json.dumps(header))


class PartsWriter:
    """Writes the units of a shard one after the other, and collects its parts and what is invalid."""

    def __init__(self, units: BinaryIO):
        self._units = units
        self._parts: list[dict[str, int]] = []
        self._part = dict.fromkeys(("first_unit", "units", "first_byte", "bytes", "tokens"), 0)
        self._invalid: list[tuple[int, str]] = []
        self._invalid_count = 0

    def note_invalid(self, number: int, reason: str) -> None:
        """Count an invalid line or row."""
        self._invalid_count += 1
        if len(self._invalid) < KEPT_MESSAGES:
            self._invalid.append((number, reason))

    def add(self, rows: NDArray[Any], counts: Sequence[int]) -> None:
        """Write whole lines.

        Args:
            rows: their units, as :data:`UNIT`.
            counts: units of each line.
        """
        self._units.write(rows.tobytes())
        starts = np.cumsum(counts, dtype=np.int64) - np.asarray(counts)
        sizes, tokens = (np.add.reduceat(rows[name], starts, dtype=np.int64).tolist() for name in ("bytes", "tokens"))
        for size, count, pieces in zip(sizes, counts, tokens, strict=True):
            self._add_to_part(size, count, pieces)

    def header(self) -> dict[str, Any]:
        """The content of the index's header; ends the last part."""
        self._close_part()
        return {
            "version": VERSION,
            "parts": self._parts,
            "invalid": self._invalid,
            "invalid_count": self._invalid_count,
        }

    def _add_to_part(self, size: int, units: int, tokens: int) -> None:
        """A line; an empty one ends a part that is large enough, any line one of twice that."""
        self._part["bytes"] += size
        self._part["units"] += units
        self._part["tokens"] += tokens
        if self._part["bytes"] >= (2 * PART_BYTES if tokens else PART_BYTES):
            self._close_part()

    def _close_part(self) -> None:
        part = self._part
        if part["units"]:
            self._parts.append(dict(part))
            part["first_unit"] += part["units"]
            part["first_byte"] += part["bytes"]
            part["units"] = part["bytes"] = part["tokens"] = 0


class _Builder:
    """Reads a shard of text once."""

    def __init__(self, encode: Encode, units: BinaryIO):
        self.encode = encode
        self.parts = PartsWriter(units)
        self.overlong = False
        """The last line read has not ended."""

    def run(self, text: BinaryIO, progress: Progress) -> dict[str, Any]:
        first_line = 1
        while lines := _read_lines(text):
            self._add(lines, first_line)
            first_line += len(lines)
            progress(sum(map(len, lines)))
        return {**self.parts.header(), "bytes": text.tell()}

    def _add(self, lines: list[bytes], first_line: int) -> None:
        reasons = _what_is_invalid(lines)
        if self.overlong:
            reasons[0] = TOO_LONG
        self.overlong = len(lines[-1]) == LONGEST_LINE and not lines[-1].endswith(b"\n")
        for number, reason in reasons.items():
            self.parts.note_invalid(first_line + number, reason)
        split = [split_line(line) if len(line) > LONGEST_UNIT else [line] for line in lines]
        units = list(chain.from_iterable(split))
        counts = np.array([len(line) for line in split])
        starts = np.cumsum(counts) - counts
        stops = starts + counts
        rows = np.zeros(len(units), UNIT)
        rows["bytes"] = [len(unit) for unit in units]
        rows["ends"][stops - 1] = True
        valid = np.repeat([number not in reasons for number in range(len(lines))], counts)
        texts = [unit_text(unit) for unit in compress(units, valid)]
        rows["tokens"][valid] = [len(pieces) for pieces in self.encode(texts)]
        has_text = np.add.reduceat(rows["tokens"], starts) > 0
        rows["tokens"][stops[has_text] - 1] += 1  # </s>
        self.parts.add(rows, counts.tolist())


def _read_lines(text: BinaryIO) -> list[bytes]:
    lines, size = [], 0
    while size < CHUNK_BYTES and (line := text.readline(LONGEST_LINE)):
        lines.append(line)
        size += len(line)
    return lines


def _what_is_invalid(lines: list[bytes]) -> dict[int, str]:
    """Which lines are not text, and why."""
    whole = b"".join(lines)
    try:
        whole.decode("utf-8")
        if b"\0" not in whole and whole.count(b"\r") == whole.count(b"\r\n") and max(map(len, lines)) < LONGEST_LINE:
            return {}
    except UnicodeDecodeError:
        pass
    found = {number: _why_invalid(line) for number, line in enumerate(lines)}
    return {number: reason for number, reason in found.items() if reason is not None}


def _why_invalid(line: bytes) -> str | None:
    return TOO_LONG if len(line) >= LONGEST_LINE else why_no_text(unit_text(line))
