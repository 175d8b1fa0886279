"""Fast tokenizers of Hugging Face (``tokenizer.json``), and tiktoken's files, which become such."""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.data.text.formats.locations import read_bytes
from torchscale_fairseq.data.text.formats.packages import imported

from . import tiktoken_file


class FastTokenizer:
    """A tokenizer of the package tokenizers. Special tokens that a text spells out are tokenized as any text, and none
    are added.

    Args:
        path: of the file, or its URL.

    Raises:
        DataError: the file cannot be read or is of another kind.
        ModuleNotFoundError: tokenizers is not installed.
    """

    cuts_lines = False

    def __init__(self, path: str):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # indices are made by processes, which may fork
        content = read_bytes(path)
        self.path = path
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]
        self.tokenizer = _loaded(content, path)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True
        model = json.loads(self.tokenizer.to_str())["model"]
        self._unknown = _unknown(model, self.tokenizer)

    def __call__(self, texts: Sequence[bytes]) -> list[list[int]]:
        """The numbers of each text's pieces."""
        found = self.tokenizer.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def documents(self, texts: Sequence[bytes]) -> list[list[int]]:
        """The numbers of each document's pieces."""
        return self(texts)

    def decode(self, numbers: Sequence[list[int]]) -> list[str]:
        """Back to text."""
        found: list[str] = self.tokenizer.decode_batch(list(numbers), skip_special_tokens=False)
        return found

    def pieces(self) -> list[str | None]:
        """Each piece by its number; None where the numbering has a gap."""
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        listed: list[str | None] = [None] * (1 + max(vocabulary.values(), default=-1))
        for piece, number in vocabulary.items():
            listed[number] = piece
        return listed

    def unknown(self) -> int:
        """The number of what has no piece; -1 if everything has."""
        return self._unknown

    def __reduce__(self) -> tuple[Any, ...]:
        return FastTokenizer, (self.path,)


def _loaded(content: bytes, path: str) -> Any:
    if tiktoken_file.is_tiktoken(content):
        return tiktoken_file.fast_tokenizer(content, path)
    tokenizers = imported("tokenizers", f"the tokenizer {path}")
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # tokenizers raises no other class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"--tokenizer-file: {path} is not the tokenizer.json of a fast tokenizer: {reason}; save it with "
            "save_pretrained, or copy it again."
        ) from None


def _unknown(model: dict[str, Any], tokenizer: Any) -> int:
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    number = tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else None
    return -1 if number is None else int(number)
