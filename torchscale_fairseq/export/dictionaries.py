"""Where the dictionaries and the SentencePiece model of a checkpoint are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq.data.data_utils import infer_language_pair

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.text.pieces import load_dictionary

PIECES = "sentencepiece.bpe.model"
SIDES = ("source", "target")


@dataclass(frozen=True)
class Dictionaries:
    """Args:
    data: the folder of the dictionaries; None for that of the training.
    pieces: the SentencePiece model; None for the one in that folder, if there is one.
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
        path = self._file(task, side)
        symbols: list[str] = load_dictionary(path, with_mask=False).symbols
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
        folder = self.data or Path(str(task.get("data") or "").split(":")[0] or ".")
        if not folder.is_dir():
            raise InputError(f"the folder of the dictionaries, {folder}, does not exist; name it with --data")
        return folder

    def _file(self, task: dict[str, Any], side: str) -> Path:
        folder = self.folder(task)
        language = task.get(f"{side}_lang")
        if language is None and not (folder / "dict.txt").is_file():
            language = dict(zip(SIDES, infer_language_pair(folder), strict=True))[side]  # as the translation task does
        path = folder / (f"dict.{language}.txt" if language else "dict.txt")
        if not path.is_file():
            raise InputError(f"{path} does not exist; name the folder of the checkpoint's dictionaries with --data")
        return path

    def pieces_file(self, task: dict[str, Any]) -> Path | None:
        """The SentencePiece model, or None where the dictionary is one of words."""
        if self.pieces is not None and not self.pieces.is_file():
            raise InputError(f"--sentencepiece {self.pieces} does not exist")
        file = self.pieces or Path(task.get("spm_model") or self.folder(task) / PIECES)
        return file if file.is_file() else None
