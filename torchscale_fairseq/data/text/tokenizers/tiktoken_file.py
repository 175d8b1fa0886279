"""tiktoken's files as fast tokenizers: each line of such a file has a token in base64, and its rank."""

import base64
import binascii
import re
from pathlib import PurePath
from typing import Any

from torchscale_fairseq.core.errors import joined
from torchscale_fairseq.data.problems import DataError
from torchscale_fairseq.data.text.formats.packages import imported

LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?(?:\n|$)")

_WORDS = r"[^\r\n\p{L}\p{N}]?"
_CASED = (
    rf"{_WORDS}[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    rf"{_WORDS}[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
)
_SPACES = r"\s+(?!\S)|\s+"
GPT2 = rf"'(?:[sdmt]|ll|ve|re)| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}"
CL100K = (
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORDS}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}"
)
O200K = rf"{_CASED}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_SPACES}"
PATTERNS = {"gpt2": GPT2, "r50k_base": GPT2, "p50k_base": GPT2, "cl100k_base": CL100K, "llama3": CL100K}
PATTERNS |= {"o200k_base": O200K}
"""The words into which each encoding splits a text; the files do not say it."""


def is_tiktoken(content: bytes) -> bool:
    """Whether a file's content is of this kind."""
    return LINE.match(content) is not None


def fast_tokenizer(content: bytes, path: str) -> Any:
    """A ``tokenizers.Tokenizer`` that gives tiktoken's numbers.

    Args:
        content: of the file.
        path: of the file, whose name begins with that of the encoding.

    Raises:
        DataError: the encoding is unknown, or a line is none of such a file.
        ModuleNotFoundError: tokenizers is not installed.
    """
    tokenizers = imported("tokenizers", f"the tiktoken file {path}")
    pattern = _pattern(path)
    ranks = _ranks(content, path)
    characters = byte_characters()
    names = {token: "".join(characters[byte] for byte in token) for token in ranks}
    vocabulary = {names[token]: rank for token, rank in ranks.items()}
    merges = [(names[left], names[right]) for left, right in _merges(ranks)]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, ignore_merges=True))
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    spelled = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, spelled])
    made.decoder = tokenizers.decoders.ByteLevel()
    return made


def _pattern(path: str) -> str:
    name = PurePath(path).name
    known = next((known for known in PATTERNS if name.startswith(known)), None)
    if known is None:
        raise DataError(
            f"--tokenizer-file: {path} does not say how its encoding splits words; give the file a name that begins "
            f"with {joined(list(PATTERNS), 'or')}."
        )
    return PATTERNS[known]


def _ranks(content: bytes, path: str) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise DataError(
                f"--tokenizer-file: {path}, line {number}: is not a token in base64, a space and a rank; copy the file "
                "again."
            ) from None
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None:
        raise DataError(
            f"--tokenizer-file: {path} has no token for the byte 0x{missing:02x}; it is truncated: copy it again."
        )
    return ranks


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two tokens that each longer one is merged from, the first to be merged first."""
    longer = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    halves = [_halves(token, ranks) for token in longer]
    return [(parts[0], parts[1]) for parts in halves if len(parts) == 2]


def _halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The parts of a token when all merges of lower rank are made."""
    parts = [token[place : place + 1] for place in range(len(token))]
    below = ranks[token]
    while len(parts) > 2:
        found = [(ranks.get(parts[i] + parts[i + 1], below), i) for i in range(len(parts) - 1)]
        rank, place = min(found)
        if rank >= below:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def byte_characters() -> dict[int, str]:
    """The character that stands for each byte in fast tokenizers: itself if it can be seen, or one from 256 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + place) for place, byte in enumerate(others)}
