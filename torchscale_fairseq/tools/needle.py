"""Measure how often a language model retrieves a fact from a long text: a needle in a haystack.

A text of each length hides a needle, a sentence that gives a number for a city, at each depth, and ends with the
sentence's beginning. The needle is retrieved if greedy decoding continues with the number. --needles hides several, of
which one is asked for. See docs/evaluation.md.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.tools.options import add_dictionaries, positive
from torchscale_fairseq.tools.progress import progress

EXAMPLE = (
    "torchscale-fairseq needle runs/text/checkpoint_best.pt --data data/text --text text/test.txt \\\n"
    "    --lengths 256 512 --trials 2"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint of a language model")
    add_dictionaries(parser)
    add = parser.add_argument
    add(
        "--lengths",
        type=tokens,
        nargs="+",
        default=[1024, 2048, 4096],
        metavar="N",
        help="lengths of the texts in tokens; 4k is 4,096 (default: 1k 2k 4k)",
    )
    add(
        "--depths",
        type=percent,
        nargs="+",
        default=[0, 25, 50, 75, 100],
        metavar="P",
        help="depths of the needle in percent of the text (default: 0 25 50 75 100)",
    )
    add("--trials", type=positive, default=10, metavar="N", help="texts per length and depth (default: 10)")
    add("--needles", type=positive, default=1, metavar="N", help="needles per text (default: 1)")
    add("--text", type=Path, metavar="FILE", help="the haystack, a sentence per line (default: six sentences)")
    add("--needle", metavar="'... {key} ... {value} ...'", help="the sentence (default: magic numbers of cities)")
    add("--keys", metavar="A,B,...", help="words for {key} (default: cities)")
    add("--values", metavar="A,B,...", help="words for {value} (default: numbers of five digits)")
    add("--max-tokens", type=positive, default=16384, metavar="N", help="tokens per batch (default: 16384)")
    add("--device", help="cpu or cuda (default: cuda if there is a GPU)")
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="precision of the model (default: that of the checkpoint)",
    )
    add("--seed", type=int, default=1, help="seed of the random texts (default: 1)")
    add("--output", type=Path, metavar="FILE", help="write a heat map, such as needle.png")


def tokens(word: str) -> int:
    """A number of tokens, such as 512 or 4k.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    digits = word.removesuffix("k")
    if not digits.isdecimal() or int(digits) < 1:
        raise argparse.ArgumentTypeError(f"{word} must be a number of tokens, such as 512 or 4k")
    return int(digits) * (1 if digits == word else 1024)


def percent(word: str) -> int:
    """A whole number from 0 to 100.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not word.isdecimal() or int(word) > 100:
        raise argparse.ArgumentTypeError(f"{word} must be a whole number from 0 to 100")
    return int(word)


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.evaluation.heat_map import draw, prepare_drawing, table
    from torchscale_fairseq.evaluation.models import read_language_model
    from torchscale_fairseq.evaluation.retrieval import Shares, shares_at
    from torchscale_fairseq.export.dictionaries import Dictionaries

    if options.output:
        prepare_drawing()
    decoder, encode = read_language_model(options.checkpoint, Dictionaries(options.data, options.sentencepiece))
    _check_lengths(max(options.lengths), decoder)
    texts = _texts(options, encode)
    _move(decoder, options)
    depths = [depth / 100 for depth in options.depths]
    how = {"trials": options.trials, "max_tokens": options.max_tokens, "seed": options.seed}
    shares: Shares = {}
    for length in progress(options.lengths, "reading", "length"):
        shares |= shares_at(decoder, texts, length, depths, **how)
    print(table(shares, options.lengths, depths))
    if options.output:
        draw(
            shares,
            options.lengths,
            depths,
            f"{options.checkpoint.parent.name}, {options.needles} needle{'s' * (options.needles > 1)}",
            options.output,
        )


def _texts(options: argparse.Namespace, encode: Any) -> Any:
    from torchscale_fairseq.evaluation.needles import HAYSTACK, KEYS, NEEDLE, NeedleTexts, Words
    from torchscale_fairseq.export.huggingface.kinds import UNK
    from torchscale_fairseq.tools.score_translation import read_lines

    values = options.values and options.values.split(",")
    words = Words(options.needle or NEEDLE, options.keys.split(",") if options.keys else KEYS, values)
    for option, word in _words(words):
        if UNK in encode(word):
            raise InputError(f"the dictionary lacks symbols for '{word}'; give others with {option}")
    return NeedleTexts(encode, read_lines(options.text) if options.text else HAYSTACK, words, options.needles)


def _words(words: Any) -> Iterator[tuple[str, str]]:
    """The words that must be known, with the option that replaces them."""
    yield from (("--needle", part) for part in words.needle.replace("{key}", "{value}").split("{value}"))
    yield from (("--keys", key) for key in words.keys)
    yield from (("--values", value) for value in words.values or "0123456789")


def _check_lengths(longest: int, decoder: Any) -> None:
    """Raise InputError if the decoder cannot read the longest text; it reads all but the last token."""
    from torchscale_fairseq.core.ops.xpos import longest_span

    positions, limit = decoder.spec.positions, decoder.position_limit
    reason = "positions of the model"
    if positions is not None and positions.xpos:
        limit, reason = (
            longest_span(positions.xpos_scale_base),
            f"tokens that --xpos-scale-base {positions.xpos_scale_base} allows",
        )
    if longest - 1 > limit:
        raise InputError(f"--lengths {longest} is more than the {limit:,} {reason}; give at most {limit}")


def _move(decoder: Any, options: argparse.Namespace) -> None:
    import torch

    decoder.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if options.dtype:
        decoder.to(getattr(torch, options.dtype))
