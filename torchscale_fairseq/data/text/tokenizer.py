"""Protocol of a tokenizer: text to numbers, in the numbering of its file."""

from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """A tokenizer in a file."""

    path: str
    fingerprint: str
    """Changes with the file; token counts are kept under it."""
    cuts_lines: bool
    """A long line can be tokenized in pieces cut at spaces."""

    def __call__(self, texts: Sequence[bytes]) -> list[list[int]]:
        """The numbers of each text's pieces."""

    def documents(self, texts: Sequence[bytes]) -> list[list[int]]:
        """The numbers of each document's pieces, however long it is."""

    def decode(self, numbers: Sequence[list[int]]) -> list[str]:
        """Back to text."""

    def pieces(self) -> list[str | None]:
        """Each piece by its number; None for control symbols, which no text gives."""

    def unknown(self) -> int:
        """The number of what has no piece; -1 if everything has."""
