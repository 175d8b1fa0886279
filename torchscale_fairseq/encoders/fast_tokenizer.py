"""``--bpe fast_tokenizer``: text to the pieces of a fast tokenizer or a tiktoken file, and back."""

from dataclasses import dataclass, field
from typing import Any

from fairseq.data.encoders import register_bpe
from fairseq.dataclass import FairseqDataclass

from torchscale_fairseq.data.text.tokenizers import FastTokenizer


@dataclass
class FastTokenizerConfig(FairseqDataclass):
    """Options of the encoder."""

    tokenizer_file: str = field(
        default="", metadata={"help": "tokenizer.json of a fast tokenizer, or tiktoken file (--bpe fast_tokenizer)"}
    )


@register_bpe("fast_tokenizer", dataclass=FastTokenizerConfig)
class FastTokenizerEncoder:
    """Pieces with spaces between them, as fairseq's dictionaries read lines.

    Args:
        cfg: the options.

    Raises:
        DataError: the file cannot be used.
        ModuleNotFoundError: tokenizers is not installed.
    """

    def __init__(self, cfg: Any):
        self._tokenizer = FastTokenizer(cfg.tokenizer_file)

    def encode(self, text: str) -> str:
        """The pieces of a text."""
        (numbers,) = self._tokenizer([text.encode()])
        return " ".join(self._tokenizer.tokenizer.id_to_token(number) for number in numbers)

    def decode(self, pieces: str) -> str:
        """The text of pieces; special symbols of fairseq are left out."""
        numbers = [self._tokenizer.tokenizer.token_to_id(piece) for piece in pieces.split(" ")]
        (text,) = self._tokenizer.decode([[number for number in numbers if number is not None]])
        return text
