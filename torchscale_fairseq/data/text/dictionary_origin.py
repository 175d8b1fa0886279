"""Comparing the dictionary of a run with that of a checkpoint."""

import hashlib
from dataclasses import dataclass
from typing import Any

from torchscale_fairseq.core.errors import InputError


@dataclass(frozen=True)
class DictionaryOrigin:
    """A dictionary, before a masked model appends <mask>, and where it comes from."""

    source: str
    """The file or folder, for messages."""
    size: int
    digest: str
    """Changes with the symbols or their order."""

    @classmethod
    def of(cls, dictionary: Any, source: str) -> "DictionaryOrigin":
        """That of fairseq's Dictionary."""
        symbols = "\n".join(dictionary.symbols).encode(errors="surrogatepass")
        return cls(source, len(dictionary.symbols), hashlib.sha256(symbols).hexdigest()[:16])

    def state(self) -> dict[str, Any]:
        """Entries of a checkpoint."""
        return {"dictionary_size": self.size, "dictionary_digest": self.digest}

    def check(self, state: dict[str, Any]) -> None:
        """Compare with the entries of a checkpoint, if it has them.

        Raises:
            InputError: they are of another dictionary.
        """
        size, digest = state.get("dictionary_size"), state.get("dictionary_digest")
        if digest in (None, self.digest):
            return
        other = f"{self.size:,} symbols" if size != self.size else "other symbols or another order"
        raise InputError(
            f"the checkpoint was trained with a dictionary of {size:,} symbols, and that of {self.source} has {other}; "
            "name the tokenizer or the dictionary of the training with --tokenizer-file or --dict-file."
        )
