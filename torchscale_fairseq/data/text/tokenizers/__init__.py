"""Tokenizers: one protocol, SentencePiece models, fast tokenizers and tiktoken's files, chosen by the file."""

from collections.abc import Sequence
from typing import Any

from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.data.text.formats.locations import exists, files_like, joined, read_bytes
from torchscale_fairseq.data.text.pieces import PIECES, PieceEncoder, load_dictionary
from torchscale_fairseq.data.text.tokenizer import Tokenizer

from .fast import FastTokenizer
from .tiktoken_file import is_tiktoken

__all__ = [
    "FastTokenizer",
    "Tokenizer",
    "dictionary_in",
    "dictionary_of",
    "find_tokenizer",
    "is_fast",
    "open_tokenizer",
    "tokenizer_of",
    "tokenizer_of_training",
]

JSON = "tokenizer.json"


def open_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a file, whose content says its kind.

    Raises:
        DataError: the file cannot be read, or is none.
        ModuleNotFoundError: its package is not installed.
    """
    return FastTokenizer(path) if is_fast(path) else PieceEncoder(path)


def is_fast(path: str) -> bool:
    """Whether the tokenizer of a file is a fast one or of tiktoken.

    Raises:
        DataError: the file cannot be read.
    """
    content = read_bytes(path, "; name the tokenizer with --tokenizer-file")
    return content.lstrip()[:1] == b"{" or is_tiktoken(content)


def find_tokenizer(folder: str) -> str | None:
    """The tokenizer of a data directory: its SentencePiece model, tokenizer.json or tiktoken file; None if it has none.

    Raises:
        DataError: there are several.
    """
    named = [joined(folder, name) for name in (PIECES, JSON)]
    found = [path for path in named if exists(path)] + files_like(joined(folder, "*.tiktoken"))
    if len(found) > 1:
        raise DataError(f"{' and '.join(found)} are both tokenizers; name one of them with --tokenizer-file.")
    return found[0] if found else None


def tokenizer_of(folder: str, named: str | None) -> Tokenizer:
    """The tokenizer of a data directory.

    Args:
        folder: the directory.
        named: --tokenizer-file or --spm-model; None or empty for the one in the directory.

    Raises:
        DataError: there is none, or it cannot be used.
        ModuleNotFoundError: its package is not installed.
    """
    file = named or find_tokenizer(folder)
    if not file:
        raise DataError(
            f"{folder} has no tokenizer ({PIECES}, {JSON} or *.tiktoken); name one with --tokenizer-file, or make one "
            "with torchscale-fairseq data train-tokenizer."
        )
    return open_tokenizer(file)


def tokenizer_of_training(task: Any, folder: str, named: str | None = None) -> Tokenizer:
    """The tokenizer that a checkpoint was trained with.

    Args:
        task: cfg.task of the checkpoint, which may name the tokenizer.
        folder: the data directory, whose tokenizer is used if the one of the training has moved.
        named: --tokenizer-file; None or empty for that of the training.

    Raises:
        DataError: there is none, or it cannot be used.
        ModuleNotFoundError: its package is not installed.
    """
    trained = getattr(task, "tokenizer_file", None) or getattr(task, "spm_model", None)
    return tokenizer_of(folder, named or (trained if trained and exists(trained) else None))


def dictionary_in(folder: str, dict_file: str | None = None, named: str | None = None) -> Any:
    """fairseq's Dictionary of a data directory: that of a dict.txt if there is one, or else of the tokenizer.

    Args:
        folder: the directory.
        dict_file: --dict-file; None or empty for dict.txt in the directory.
        named: --tokenizer-file or --spm-model; None or empty for the one in the directory.

    Raises:
        DataError: there is neither, or it is broken.
        ModuleNotFoundError: the tokenizer's package is not installed.
    """
    path = dict_file or joined(folder, "dict.txt")
    file = None if dict_file or exists(path) else named or find_tokenizer(folder)
    if not file:
        return load_dictionary(path, with_mask=False)
    tokenizer = open_tokenizer(file)
    return dictionary_of(tokenizer.pieces(), tokenizer.unknown())


def dictionary_of(pieces: Sequence[str | None], unknown: int) -> Any:
    """fairseq's Dictionary of a tokenizer: <s>, <pad>, </s>, <unk>, then its pieces in their order, but for those four.

    Args:
        pieces: by their numbers.
        unknown: the number of the piece that <unk> stands for.
    """
    from fairseq.data import Dictionary

    dictionary = Dictionary()
    for number, piece in enumerate(pieces):
        if piece is not None and number != unknown and piece not in dictionary.indices:
            dictionary.add_symbol(piece)
    return dictionary
