"""Text with masks in it, by any tokenizer, and the pieces that fill the masks as people read them."""

import struct
from collections.abc import Callable, Iterable

from torchscale_fairseq.data.text.formats.locations import read_bytes
from torchscale_fairseq.data.text.pieces import MASK, WORD_START, without_spaces_before_masks
from torchscale_fairseq.data.text.tokenizer import Tokenizer

from .fast import FastTokenizer
from .tiktoken_file import byte_characters

BYTE_SPACE = byte_characters()[ord(" ")]
"""The space before a word in pieces of bytes."""
CONTINUES = "##"
"""WordPiece's mark of a piece within a word."""
_USER_DEFINED = 4
"""SentencePiece's type of a piece that is always one token."""


def masked_text_encoder(tokenizer: Tokenizer) -> Callable[[str], list[str]]:
    """A function from a text to its symbols, in which each mask is ``<mask>``, as in training: the space before it
    belongs to the word that it stands for.

    Args:
        tokenizer: of the training, which may lack the piece ``<mask>``.
    """
    return _by_fast(tokenizer) if isinstance(tokenizer, FastTokenizer) else _by_sentencepiece(tokenizer.path)


def _by_fast(fast: FastTokenizer) -> Callable[[str], list[str]]:
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_str(fast.tokenizer.to_str())
    tokenizer.encode_special_tokens = True
    tokenizer.add_tokens([AddedToken(MASK, lstrip=True, normalized=False)])
    symbols = {number: symbol for symbol, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    return lambda text: [symbols[number] for number in tokenizer.encode(text, add_special_tokens=False).ids]


def _by_sentencepiece(path: str) -> Callable[[str], list[str]]:
    import sentencepiece

    content = read_bytes(path)
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    if processor.is_unknown(processor.piece_to_id(MASK)):
        processor = sentencepiece.SentencePieceProcessor(model_proto=content + _mask_piece())

    return lambda text: without_spaces_before_masks(" ".join(processor.encode(text, out_type=str))).split()


def _mask_piece() -> bytes:
    """Bytes that, appended to a SentencePiece model, add the piece ``<mask>``: fields of its ModelProto."""
    name = MASK.encode()
    piece = b"\x0a" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", 0.0) + b"\x18" + bytes([_USER_DEFINED])
    return b"\x0a" + bytes([len(piece)]) + piece


class Spelling:
    """Pieces as people read them: words as they are, pieces within a word with three dots in front.

    Args:
        pieces: all of a tokenizer, which tell how it marks words.
    """

    def __init__(self, pieces: Iterable[str]):
        known = set(pieces)
        self._bytes = {}
        if any(piece.startswith(BYTE_SPACE) for piece in known) and not any(
            piece.startswith(WORD_START) for piece in known
        ):
            self._bytes = {character: byte for byte, character in byte_characters().items()}
        self._bare_words = any(piece.startswith(CONTINUES) for piece in known)

    def __call__(self, piece: str) -> str:
        """A piece as people read it; punctuation and symbols such as </s> as they are."""
        text = self._text(piece)
        if text.startswith((" ", WORD_START)):
            return text[1:]
        if text.startswith(CONTINUES):
            return f"...{text.removeprefix(CONTINUES)}"
        return text if self._bare_words or not text[:1].isalnum() else f"...{text}"

    def _text(self, piece: str) -> str:
        """A piece of bytes as text; another one as it is."""
        if not self._bytes or any(character not in self._bytes for character in piece):
            return piece
        text = bytes(self._bytes[character] for character in piece).decode(errors="replace")
        return text if text.isprintable() else repr(text)[1:-1]
