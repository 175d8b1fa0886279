"""Repairs of stock fairseq's alignments of translations with their sources."""

from collections.abc import Callable, Sequence
from typing import Any

from fairseq import tokenizer

from torchscale_fairseq.core.errors import InputError


def replace_unknown_words(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``--replace-unk`` ends with ``IndexError`` without ``--print-alignment`` and with ``TypeError`` next to it, since
    it takes pairs of words for places. Now each unknown word is replaced by the source word it is aligned with."""

    def replace_unk(hypo_str: str, src_str: str, alignment: Any, align_dict: Any, unk: str) -> Any:
        if unk not in tokenizer.tokenize_line(hypo_str):
            return hypo_str
        return stock(hypo_str, src_str, _source_words(alignment), align_dict, unk)

    return replace_unk


def _source_words(alignment: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The source word, counted from 0, of each target word; the last one, ``<eos>``, for words without."""
    sources: dict[int, int] = {}
    for source, target in alignment:
        sources.setdefault(int(target), int(source))
    return sources


def refuse_alignment_without_attention(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``--score-reference --print-alignment`` ends with ``TypeError: 'NoneType' object is not iterable`` for models
    that return no attention weights. Now it is an error that says so."""

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        scored = stock(self, *args, **kwargs)
        if self.compute_alignment and any(best[0]["alignment"] is None for best in scored):
            raise InputError(
                "--score-reference with --print-alignment needs attention weights, which this model does not "
                "return; leave out --print-alignment, or align the text with a word aligner (fast_align, "
                "awesome-align)"
            )
        return scored

    return generate
