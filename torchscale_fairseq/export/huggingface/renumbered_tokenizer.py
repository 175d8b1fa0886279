"""A fast tokenizer with the numbers of a fairseq dictionary."""

import json
from collections.abc import Sequence
from typing import Any

from torchscale_fairseq.data.text.tokenizers import FastTokenizer

UNKNOWN = "<unk>"
LOWEST = -1e5
"""Score of symbols that a model of scored pieces is not to give."""


def renumbered(symbols: Sequence[str], fast: FastTokenizer) -> Any:
    """A ``tokenizers.Tokenizer`` whose special tokens are still to be added.

    Args:
        symbols: of the dictionary, by their numbers. Pieces that it lacks are numbered behind it.
        fast: the tokenizer in its own numbers.
    """
    from tokenizers import Tokenizer

    content = json.loads(fast.tokenizer.to_str())
    listed = fast.pieces()
    own_unknown = listed[fast.unknown()] if fast.unknown() >= 0 else None
    known = set(symbols)
    beyond = [piece for piece in listed if piece is not None and piece not in known and piece != own_unknown]
    vocabulary = [*symbols, *beyond]
    _renumber(content["model"], vocabulary)
    numbers = {symbol: number for number, symbol in enumerate(vocabulary)}
    content["added_tokens"] = [
        {**token, "id": numbers[token["content"]]}
        for token in content["added_tokens"]
        if numbers.get(token["content"], 0) > numbers[UNKNOWN]
    ]
    return Tokenizer.from_str(json.dumps(content | {"truncation": None, "padding": None, "post_processor": None}))


def _renumber(model: dict[str, Any], vocabulary: Sequence[str]) -> None:
    """Change the numbers of a model's pieces in place."""
    if model["type"] == "Unigram":
        scores = dict(model["vocab"])
        model["vocab"] = [[piece, LOWEST if piece == UNKNOWN else scores.get(piece, LOWEST)] for piece in vocabulary]
        if model["unk_id"] is not None:
            model["unk_id"] = vocabulary.index(UNKNOWN)
        return
    model["vocab"] = {piece: number for number, piece in enumerate(vocabulary)}
    if model.get("unk_token") is not None:
        model["unk_token"] = UNKNOWN
