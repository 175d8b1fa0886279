"""The contents of a SentencePiece model file, read from its protocol buffer without that package."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchscale_fairseq.core.errors import InputError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of pieces (sentencepiece_model.proto)."""
UNIGRAM, BPE = 1, 2
Field = tuple[int, int | bytes]


@dataclass(frozen=True)
class Piece:
    """A piece, its logarithmic probability or rank, and its type."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    """Args:
    pieces: by their numbers.
    model_type: UNIGRAM or BPE.
    byte_fallback: bytes stand for characters that no piece has.
    split_by_whitespace: no piece goes over a space.
    charsmap: the compiled rules of normalisation; empty for none.
    dummy_prefix: a space is put in front of a text.
    remove_extra_whitespace: spaces at the ends go, and several in a row become one.
    """

    pieces: list[Piece]
    model_type: int
    byte_fallback: bool
    split_by_whitespace: bool
    charsmap: bytes
    dummy_prefix: bool
    remove_extra_whitespace: bool


def read_model(path: Path) -> SentencePieceModel:
    """Read a model file.

    Raises:
        InputError: it is none.
    """
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [_piece(content) for number, content in fields if number == 1 and isinstance(content, bytes)]
        trainer, normalizer = (_message(fields, number) for number in (2, 3))
    except (IndexError, ValueError, struct.error):
        raise InputError(f"{path} is not a SentencePiece model") from None
    charsmap = normalizer.get(2, b"")
    assert isinstance(charsmap, bytes)
    return SentencePieceModel(
        pieces,
        model_type=int(trainer.get(3, UNIGRAM)),
        byte_fallback=bool(trainer.get(35, False)),
        split_by_whitespace=bool(trainer.get(22, True)),
        charsmap=charsmap,
        dummy_prefix=bool(normalizer.get(3, True)),
        remove_extra_whitespace=bool(normalizer.get(4, True)),
    )


def _piece(content: bytes) -> Piece:
    fields = dict(_fields(content))
    text, score = fields[1], fields.get(2, bytes(4))
    assert isinstance(text, bytes) and isinstance(score, bytes)
    return Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], int(fields.get(3, NORMAL)))


def _message(fields: list[Field], number: int) -> dict[int, int | bytes]:
    content = next((content for found, content in fields if found == number), b"")
    assert isinstance(content, bytes)
    return dict(_fields(content))


def _fields(content: bytes) -> Iterator[Field]:
    """The fields of a message: their numbers with integers, or with bytes for all other types."""
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        if key & 7 == 0:
            value, position = _varint(content, position)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(key & 7)
        if key & 7 == 2:
            size, position = _varint(content, position)
        if size is None or position + size > len(content):
            raise ValueError("no protocol buffer")
        yield key >> 3, content[position : position + size]
        position += size


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """An integer of seven bits per byte, and the position behind it."""
    value = shift = 0
    while True:
        byte = content[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position
