"""Text to numbers: SentencePiece, in batches, and its pieces in the numbering of a fairseq dictionary."""

import hashlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchscale_fairseq.data.problems import DataError, Problems

MASK = "<mask>"


class PieceEncoder:
    """A SentencePiece model.

    Raises:
        DataError: the file is missing or is not a model.
        ModuleNotFoundError: sentencepiece is not installed.
    """

    def __init__(self, model: Path):
        try:
            import sentencepiece
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "--task pretraining needs sentencepiece; install it with pip install torchscale-fairseq[data].",
                name="sentencepiece",
            ) from None
        try:
            content = model.read_bytes()
        except OSError as error:
            raise DataError(
                f"--spm-model: cannot read {model}: {error.strerror}; torchscale-fairseq data train-tokenizer makes "
                "one."
            ) from error
        self.path = model
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]
        """Changes with the model; token counts are kept under it."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError:
            raise DataError(f"--spm-model: {model} is not a SentencePiece model.") from None

    def __call__(self, texts: Sequence[bytes], *, threads: int = 1) -> list[list[int]]:
        """The numbers of each text's pieces, in SentencePiece's own numbering."""
        return self._processor.encode(list(texts), out_type=int, num_threads=threads)

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
        pieces: the SentencePiece model.
        dictionary: fairseq's; that each piece is in it is checked.
        path: of the dictionary, for messages.
        problems: takes pieces that the dictionary lacks, which become <unk>.
    """

    def __init__(self, pieces: PieceEncoder, dictionary: Any, path: Path, problems: Problems):
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
                f"pieces, such as '{piece}', piece {number}; give both of one tokenizer (--dict-file, --spm-model)",
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
        return self._numbers[numbers], counts


def load_dictionary(path: Path, *, with_mask: bool) -> Any:
    """fairseq's Dictionary of a dict.txt, as its own tasks number it.

    Args:
        with_mask: append <mask>, as the masked_lm and sentence_prediction tasks do, unless the file has it.

    Raises:
        DataError: the file is missing, or a line is not "symbol count".
    """
    from fairseq.data import Dictionary

    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(
            f"--dict-file: cannot read {path}: {error.strerror}; torchscale-fairseq data train-tokenizer makes one."
        ) from error
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        where = f"--dict-file: {path}, line {number}"
        try:
            fields = line.decode("utf-8").removesuffix("\r").removesuffix(" #fairseq:overwrite").rsplit(" ", 1)
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: byte 0x{line[error.start]:02x} is not UTF-8.") from None
        if line.strip() and not (len(fields) == 2 and fields[1].isdigit()):
            raise DataError(f"{where}: '{' '.join(fields)[:60]}' is not a symbol, a space and a count.")
        if line.strip() and seen.setdefault(fields[0], number) != number and b"#fairseq:overwrite" not in line:
            raise DataError(f"{where}: '{fields[0]}' stands in line {seen[fields[0]]} already.")
    dictionary = Dictionary.load(str(path))
    if with_mask:
        dictionary.add_symbol(MASK)
    return dictionary
