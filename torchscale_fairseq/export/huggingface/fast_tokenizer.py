"""Fast tokenizers (package tokenizers) that number pieces or words as a dictionary of fairseq does."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.text.pieces import MASK, WORD_START
from torchscale_fairseq.data.text.tokenizers import FastTokenizer, open_tokenizer

from .kinds import BOS, CAUSAL, EOS, MASKED, PAD, UNK, Kind
from .renumbered_tokenizer import renumbered
from .sentencepiece_model import (
    BPE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    read_model,
)

UNMATCHED = -1e5
"""Score of symbols that no text is to give."""


def make_tokenizer(symbols: Sequence[str], pieces: Path | None, kind: Kind) -> Any:
    """A ``tokenizers.Tokenizer``.

    Args:
        symbols: of the dictionary, by their numbers. Pieces that it lacks are numbered behind it.
        pieces: the file of a tokenizer; None for a dictionary of words.
        kind: of the model, which says the special tokens of a text.

    Raises:
        InputError: the SentencePiece model is missing, or of a type that has no fast tokenizer.
        ModuleNotFoundError: tokenizers is not installed.
    """
    from tokenizers import AddedToken, Tokenizer

    if pieces is None:
        tokenizer = Tokenizer(_words(symbols))
        _configure_words(tokenizer)
    elif isinstance(found := open_tokenizer(str(pieces)), FastTokenizer):
        tokenizer = renumbered(symbols, found)
    else:
        model = read_model(pieces)
        tokenizer = Tokenizer(_pieces(symbols, model, pieces))
        _configure_pieces(tokenizer, model)
        if model.model_type == BPE:
            own = [piece.text for piece in model.pieces if piece.type == USER_DEFINED]
            tokenizer.add_tokens([AddedToken(text, normalized=False) for text in own])
    tokenizer.post_processor = _template(symbols, kind)
    special = [symbols[number] for number in (BOS, PAD, EOS, UNK)] + [MASK] * (kind is MASKED and MASK in symbols)
    tokenizer.add_special_tokens([AddedToken(text, lstrip=text == MASK, special=True) for text in special])
    return tokenizer


def pieces_beyond(symbols: Sequence[str], model: SentencePieceModel) -> list[str]:
    """Pieces that texts can give and the dictionary lacks."""
    known = set(symbols)
    return [
        piece.text for piece in model.pieces if piece.text not in known and piece.type not in (CONTROL, UNKNOWN, UNUSED)
    ]


def _words(symbols: Sequence[str]) -> Any:
    from tokenizers import models

    split = next((symbol for symbol in symbols if symbol.startswith(WORD_START)), None)
    if split is not None:
        raise InputError(
            f"the dictionary has pieces of SentencePiece, such as {split}; name the model with --sentencepiece"
        )
    return models.WordLevel({symbol: number for number, symbol in enumerate(symbols)}, unk_token=symbols[UNK])


def _configure_words(tokenizer: Any) -> None:
    from tokenizers import pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


def _pieces(symbols: Sequence[str], model: SentencePieceModel, path: Path) -> Any:
    from tokenizers import models

    vocabulary = [*symbols, *pieces_beyond(symbols, model)]
    scores = _scores(model)
    if model.model_type == UNIGRAM:
        scored = [(text, scores.get(text, UNMATCHED)) for text in vocabulary]
        return models.Unigram(scored, unk_id=UNK, byte_fallback=model.byte_fallback)
    if model.model_type == BPE:
        numbers = {text: number for number, text in enumerate(vocabulary)}
        return models.BPE(
            numbers, _merges(scores), unk_token=symbols[UNK], fuse_unk=True, byte_fallback=model.byte_fallback
        )
    raise InputError(f"{path} is of type word or char; models of type unigram and bpe become fast tokenizers")


def _scores(model: SentencePieceModel) -> dict[str, float]:
    """Scores of the pieces that are matched with text. Unigram prefers a symbol that the user has defined to all else
    (unigram_model.cc)."""
    best = max((piece.score for piece in model.pieces if piece.type == NORMAL), default=0.0)
    scores = {piece.text: piece.score for piece in model.pieces if piece.type == NORMAL}
    own = [piece.text for piece in model.pieces if piece.type == USER_DEFINED]
    return scores | {text: len(text) * best - 0.1 for text in own}


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """The pairs of pieces that SentencePiece joins, the first to be joined first."""
    pairs = {
        text: [(text[:cut], text[cut:]) for cut in range(1, len(text)) if text[:cut] in scores and text[cut:] in scores]
        for text in sorted(scores, key=lambda text: -scores[text])
    }
    return list(chain.from_iterable(pairs.values()))


def _configure_pieces(tokenizer: Any, model: SentencePieceModel) -> None:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    rules: list[Any] = []
    if model.charsmap:  # which tokenizers applies to grapheme clusters, and "\r\n" is one
        rules += [normalizers.Replace("\r\n", "\n\n"), normalizers.Precompiled(model.charsmap)]
    if model.remove_extra_whitespace:
        rules += [normalizers.Replace(Regex("^ +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    rules.append(normalizers.Replace(" ", WORD_START))
    if model.dummy_prefix:
        rules.append(normalizers.Prepend(WORD_START))
    if model.remove_extra_whitespace:
        rules.append(normalizers.Replace(Regex(f"{WORD_START}+$"), ""))  # also where the text itself has the mark
    tokenizer.normalizer = normalizers.Sequence(rules)
    # SentencePiece gives no special tokens or bytes for texts that spell them out: no piece goes over their first "<".
    apart = pre_tokenizers.Split(Regex("<(?=/?s>|pad>|unk>|0x[0-9A-F]{2}>)"), "merged_with_previous")
    spaces = pre_tokenizers.Metaspace(WORD_START, "never", split=model.split_by_whitespace)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([apart, spaces])
    steps: list[Any] = [decoders.Replace(WORD_START, " ")]
    if model.byte_fallback:
        steps += [decoders.ByteFallback(), decoders.Fuse()]
    else:
        steps.append(decoders.Fuse())
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if model.dummy_prefix else [])])


def _template(symbols: Sequence[str], kind: Kind) -> Any:
    """Special tokens around a text, as fairseq's tasks put them."""
    from tokenizers import processors

    start, end = symbols[BOS], symbols[EOS]
    single = f"{start} $A {end}" if kind is MASKED else f"{end} $A" if kind is CAUSAL else f"$A {end}"
    pair = f"{single} {end} $B {end}" if kind is MASKED else f"{single} $B {end}"
    return processors.TemplateProcessing(single, pair, [(start, BOS), (end, EOS)])
