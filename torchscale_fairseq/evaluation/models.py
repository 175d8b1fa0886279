"""A language model and its tokenizer, from a checkpoint of fairseq."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.text.tokenizers import open_tokenizer
from torchscale_fairseq.export.dictionaries import Dictionaries
from torchscale_fairseq.export.huggingface.kinds import CAUSAL, UNK, kind_of
from torchscale_fairseq.export.plain_model import eager_model
from torchscale_fairseq.tools.convert.safetensors_folder import read_parts


def read_language_model(checkpoint: Path, dictionaries: Dictionaries) -> tuple[Any, Callable[[str], list[int]]]:
    """The core's decoder, and a function from text to tokens.

    Raises:
        InputError: the checkpoint or the dictionary does not fit, or the model is no causal language model.
        ModuleNotFoundError: the tokenizer's package is not installed.
    """
    parts = read_parts(checkpoint)
    if kind_of(parts.config) is not CAUSAL:
        name = type(parts.config).__name__.removesuffix("Config")
        raise InputError(
            f"{checkpoint} holds a model of the kind {name}; name a checkpoint of a language model (gpt_*, "
            "longnet_*, retnet_*)"
        )
    task = (parts.description["entries"].get("cfg") or {}).get("task") or {}
    rows = len(parts.tensors["embed_tokens.weight"])
    numbers = {symbol: number for number, symbol in enumerate(dictionaries.symbols(task, "target", rows))}
    split = _splitter(dictionaries.pieces_file(task))
    return eager_model(parts), lambda text: [numbers.get(piece, UNK) for piece in split(text)]


def _splitter(pieces: Path | None) -> Callable[[str], list[str]]:
    """Text to the symbols of a dictionary, by the tokenizer or at spaces."""
    if pieces is None:
        return str.split
    tokenizer = open_tokenizer(str(pieces))
    symbols = [piece or "<unk>" for piece in tokenizer.pieces()]
    return lambda text: [symbols[number] for number in tokenizer([text.encode()])[0]]
