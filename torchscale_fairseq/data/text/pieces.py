"""Text to numbers: SentencePiece, in batches, and the pieces of any tokenizer in the numbering of a dictionary."""

import hashlib
import io
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.data.text.formats.locations import read_bytes
from torchscale_fairseq.data.text.index import split_line
from torchscale_fairseq.data.text.tokenizer import Tokenizer

MASK = "<mask>"
WORD_START = "\u2581"
"""SentencePiece's mark of the space before a word."""
PIECES = "sentencepiece.bpe.model"
"""Name of a SentencePiece model next to its dictionary."""


def without_spaces_before_masks(pieces: str) -> str:
    """Pieces of SentencePiece, with spaces between them, in which each mask takes the space before it along."""
    return f" {pieces}".replace(f" {WORD_START} {MASK}", f" {MASK}").strip()


class PieceEncoder:
    """A SentencePiece model.

    Args:
        model: path of the file, or its URL.

    Raises:
        DataError: the file is missing or is not a model.
        ModuleNotFoundError: sentencepiece is not installed.
    """

    cuts_lines = True

    def __init__(self, model: str | Path):
        try:
            import sentencepiece
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "--task pretraining needs sentencepiece; install it with pip install torchscale-fairseq[data].",
                name="sentencepiece",
            ) from None
        content = read_bytes(str(model), "; torchscale-fairseq data train-tokenizer makes one")
        self.path = str(model)
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]
        """Changes with the model; token counts are kept under it."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError:
            raise DataError(f"--spm-model: {model} is not a SentencePiece model.") from None

    def __call__(self, texts: Sequence[bytes], *, threads: int = 1) -> list[list[int]]:
        """The numbers of each text's pieces, in SentencePiece's own numbering."""
        return self._processor.encode(list(texts), out_type=int, num_threads=threads)

    def documents(self, texts: Sequence[bytes]) -> list[list[int]]:
        """The numbers of each document's pieces, tokenized in runs that are cut at spaces."""
        cut = [split_line(text) for text in texts]
        runs = iter(self([run.removesuffix(b" ") for runs in cut for run in runs]))
        return [list(chain.from_iterable(islice(runs, len(runs_of)))) for runs_of in cut]

    def decode(self, numbers: Sequence[list[int]]) -> list[str]:
        """Back to text."""
        return self._processor.decode(list(numbers))

    def pieces(self) -> list[str | None]:
        """Each piece by its number; None for control symbols, which no text gives."""
        processor = self._processor
        return [
            None if processor.is_control(number) or processor.is_unused(number) else processor.id_to_piece(number)
            for number in range(processor.get_piece_size())
        ]

    def unknown(self) -> int:
        """The number of what has no piece."""
        return self._processor.unk_id()


class TextEncoder:
    """Text to the numbers of a fairseq dictionary.

    Args:
        pieces: the tokenizer.
        dictionary: fairseq's; that each piece is in it is checked.
        path: of the dictionary, for messages.
        problems: takes pieces that the dictionary lacks, which become <unk>.
    """

    def __init__(self, pieces: Tokenizer, dictionary: Any, path: str | Path, problems: Problems):
        self.pieces = pieces
        listed = pieces.pieces()
        unknown = pieces.unknown()
        missing = [
            (number, piece)
            for number, piece in enumerate(listed)
            if piece is not None and number != unknown and piece not in dictionary.indices
        ]
        if missing:
            number, piece = missing[0]
            problems.found(
                "pieces that the dictionary lacks (they become <unk>)",
                f"{path} does not fit {pieces.path}: it lacks {len(missing):,} of the tokenizer's {len(listed):,} "
                f"pieces, such as '{piece}', piece {number}; give both of one tokenizer (--dict-file, "
                "--tokenizer-file)",
                len(missing),
            )
        self._numbers = np.array(
            [dictionary.unk() if piece is None else dictionary.indices.get(piece, dictionary.unk()) for piece in listed]
        )

    def __call__(self, texts: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the tokens of all texts in a row, and how many each has."""
        encoded = self.pieces(texts)
        counts = np.fromiter(map(len, encoded), np.int64, len(encoded))
        numbers = np.fromiter(chain.from_iterable(encoded), np.int64, int(counts.sum()))
        return self.renumbered(numbers), counts

    def renumbered(self, numbers: NDArray[Any]) -> NDArray[np.int64]:
        """The tokens of pieces that the tokenizer has numbered."""
        found: NDArray[np.int64] = self._numbers[numbers]
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """Numbers of the dictionary as text; those that are no piece are left out."""
        pieces = {int(number): piece for piece, number in enumerate(self._numbers)}
        return self.pieces.decode([[pieces[token] for token in tokens if token in pieces]])[0]


def load_dictionary(path: str | Path, *, with_mask: bool) -> Any:
    """fairseq's Dictionary of a dict.txt, as its own tasks number it.

    Args:
        path: of the file, or its URL.
        with_mask: append <mask>, as the masked_lm and sentence_prediction tasks do, unless the file has it.

    Raises:
        DataError: the file is missing, or a line is not "symbol count".
    """
    from fairseq.data import Dictionary

    content = read_bytes(
        str(path), "; name it with --dict-file, or make one with torchscale-fairseq data train-tokenizer"
    )
    seen: dict[str, int] = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        where = f"--dict-file: {path}, line {number}"
        try:
            fields = line.decode("utf-8").removesuffix("\r").removesuffix(" #fairseq:overwrite").rsplit(" ", 1)
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: byte 0x{line[error.start]:02x} is not UTF-8.") from None
        if line.strip() and not (len(fields) == 2 and fields[1].isdigit()):
            raise DataError(f"{where}: '{' '.join(fields)[:60]}' is not a symbol, a space and a count.")
        if line.strip() and seen.setdefault(fields[0], number) != number and b"#fairseq:overwrite" not in line:
            raise DataError(f"{where}: '{fields[0]}' stands in line {seen[fields[0]]} already.")
    dictionary = Dictionary()
    dictionary.add_from_file(io.StringIO(content.decode()))
    if with_mask:
        dictionary.add_symbol(MASK)
    return dictionary
