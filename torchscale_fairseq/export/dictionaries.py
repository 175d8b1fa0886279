"""Where the dictionaries and the tokenizer of a checkpoint are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq.data.data_utils import infer_language_pair
from fairseq.utils import split_paths

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.text.pieces import load_dictionary
from torchscale_fairseq.data.text.tokenizers import dictionary_of, find_tokenizer, open_tokenizer

SIDES = ("source", "target")


@dataclass(frozen=True)
class Dictionaries:
    """Args:
    data: the folder of the dictionaries; None for that of the training.
    pieces: the tokenizer; None for that of the training, or the one in that folder, if there is one.
    """

    data: Path | None = None
    pieces: Path | None = None

    def symbols(self, task: dict[str, Any], side: str, rows: int) -> list[str]:
        """The symbols of a dictionary by their numbers.

        Args:
            task: cfg.task of the checkpoint.
            side: source or target, of translation; of other models there is one dictionary.
            rows: of the embedding.

        Raises:
            InputError: the file is missing or does not fit the embedding.
        """
        path, symbols = self._symbols(task, side)
        if len(symbols) == rows - 1:
            symbols = [*symbols, "<mask>"]
        if len(symbols) != rows:
            raise InputError(
                f"{path} has {len(symbols):,} symbols and the checkpoint's {side} embedding {rows:,} rows; name the "
                "folder of its dictionaries with --data"
            )
        return symbols

    def folder(self, task: dict[str, Any]) -> Path:
        """The folder of the dictionaries.

        Raises:
            InputError: it does not exist.
        """
        folder = self.data or Path(split_paths(str(task.get("data") or "."))[0])
        if not folder.is_dir():
            raise InputError(f"the folder of the dictionaries, {folder}, does not exist; name it with --data")
        return folder

    def _symbols(self, task: dict[str, Any], side: str) -> tuple[Path, list[str]]:
        """The file that a dictionary comes from, and its symbols."""
        folder = self.folder(task)
        language = task.get(f"{side}_lang")
        if language is None and not (folder / "dict.txt").is_file():
            language = dict(zip(SIDES, infer_language_pair(folder), strict=True))[side]  # as the translation task does
        path = Path(task.get("dict_file") or folder / (f"dict.{language}.txt" if language else "dict.txt"))
        if path.is_file():
            return path, load_dictionary(path, with_mask=False).symbols
        pieces = None if language else self.pieces_file(task)
        if pieces is None:
            raise InputError(f"{path} does not exist; name the folder of the checkpoint's dictionaries with --data")
        tokenizer = open_tokenizer(str(pieces))
        return pieces, dictionary_of(tokenizer.pieces(), tokenizer.unknown()).symbols

    def pieces_file(self, task: dict[str, Any]) -> Path | None:
        """The tokenizer, or None where the dictionary is one of words.

        Raises:
            InputError: --sentencepiece does not exist, or there are several.
        """
        if self.pieces is not None and not self.pieces.is_file():
            raise InputError(f"--sentencepiece {self.pieces} does not exist")
        named = self.pieces or task.get("tokenizer_file") or task.get("spm_model")
        file = named or find_tokenizer(str(self.folder(task)))
        return Path(file) if file and Path(file).is_file() else None
