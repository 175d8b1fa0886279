"""Files of documents, tokenized once: their tokens lie next to their index.

A compressed file, a column or an escaped string cannot be read from its middle, and a remote file not quickly. So the
first run reads such a file from its beginning to its end, and keeps its tokens, two or four bytes each. A sample is
then a stretch of a file, as it is of a shard of text, and order, resumption and workers know no formats.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from torchscale_fairseq.core.files import make_directory, write_atomically
from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.data.text.formats import Document, reader_of
from torchscale_fairseq.data.text.formats.locations import size_of, stamp_of
from torchscale_fairseq.data.text.index import (
    CHUNK_BYTES,
    LONGEST_UNIT,
    UNIT,
    VERSION,
    IndexPath,
    PartsWriter,
    Progress,
)
from torchscale_fairseq.data.text.tokenizer import Tokenizer


class TokenizedPath(IndexPath):
    """Where the index and the tokens of a file lie.

    Args:
        folder: of the index.
        shard: path or URL of the file.
        field: name of the field or column that holds the text.
        pieces: numbers that the tokenizer has.
    """

    def __init__(self, folder: Path, shard: str, field: str, pieces: int):
        self.shard = shard
        self.field = field
        self.reader = reader_of(shard)
        self.token = np.dtype("<u2" if pieces <= 1 << 16 else "<u4")
        name = f"{shard.rstrip('/').rpartition('/')[2]}.{'lines' if self.reader.holds_lines else quote(field, '')}"
        self.header = folder / f"{name}.json"
        self.units = folder / f"{name}.units"
        self.content = str(folder / f"{name}.tokens")

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return size_of(self.shard)

    def is_current(self) -> bool:
        """Whether the file was tokenized as it is now."""
        try:
            header = json.loads(self.header.read_text())
            return bool(header["version"] == VERSION and header["stamp"] == stamp_of(self.shard))
        except (DataError, KeyError, OSError, ValueError):
            return False

    def build(self, encode: Any, progress: Progress = lambda _: None) -> None:
        """Tokenize the file.

        Args:
            encode: the ``Tokenizer``.
            progress: called with the number of bytes when the file is done.

        Raises:
            DataError: the file cannot be read, or is not of its format.
            WriteError: the index cannot be written.
        """
        make_directory(self.header.parent)
        stamp, size = stamp_of(self.shard), self.size
        with (
            write_atomically(self.units, several_writers=True) as units,
            write_atomically(self.content, several_writers=True) as tokens,
            units.open("wb") as units_file,
            tokens.open("wb") as tokens_file,
        ):
            parts = PartsWriter(units_file)
            for documents in self._chunks():
                rows, counts, numbers = self._tokenized(documents, encode, parts)
                parts.add(rows, counts)
                tokens_file.write(numbers.tobytes())
        header = {**parts.header(), "stamp": stamp, "counts": self.reader.counts}
        with write_atomically(self.header, several_writers=True) as scratch:
            scratch.write_text(json.dumps(header))
        progress(size)

    def _chunks(self) -> Iterator[list[Document]]:
        chunk, size = [], 0
        for document in self.reader.documents(self.shard, self.field):
            chunk.append(document)
            size += len(document.text) + 1
            if size >= CHUNK_BYTES:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _tokenized(
        self, documents: Sequence[Document], encode: Tokenizer, parts: PartsWriter
    ) -> tuple[NDArray[Any], list[int], NDArray[Any]]:
        """The units of documents, how many each line has, and all tokens. A document is a line with an empty one behind
        it, which ends documents of text, too."""
        for document in documents:
            if document.reason is not None:
                parts.note_invalid(document.number, document.reason)
        encoded = encode.documents([document.text for document in documents])
        numbers = np.fromiter(chain.from_iterable(encoded), self.token, sum(map(len, encoded)))
        lines = [_cut(len(pieces)) for pieces in encoded]
        if not self.reader.holds_lines:
            lines = [line for document in lines for line in (document, [0])]
        rows = np.zeros(sum(map(len, lines)), UNIT)
        rows["tokens"] = list(chain.from_iterable(lines))
        rows["bytes"] = rows["tokens"] * self.token.itemsize
        counts = [len(line) for line in lines]
        last = np.cumsum(counts) - 1
        rows["ends"][last] = True
        rows["tokens"][last] += rows["tokens"][last] > 0  # </s>
        return rows, counts, numbers


def _cut(pieces: int) -> list[int]:
    """The sizes of a document's units, so that a sample of a long one is read without the rest."""
    whole, rest = divmod(pieces, LONGEST_UNIT)
    return [LONGEST_UNIT] * whole + [rest] * (rest > 0 or not whole)
