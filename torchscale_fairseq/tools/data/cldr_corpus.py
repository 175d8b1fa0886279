"""Write an English-German parallel corpus from Unicode CLDR, as Babel ships it, and num2words.

Six kinds of sentences in equal shares: dates, times, currencies, units, territories with languages, and numbers in
words. No English line occurs twice, within a split or across splits.
"""

import argparse
import random
from pathlib import Path
from typing import TYPE_CHECKING

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory_atomically
from torchscale_fairseq.tools.data.splits import SPLITS
from torchscale_fairseq.tools.options import positive
from torchscale_fairseq.tools.progress import progress

if TYPE_CHECKING:
    from torchscale_fairseq.tools.data.cldr_sentences import Phrase

EXAMPLE = "torchscale-fairseq data cldr-corpus data/cldr.en-de --train-pairs 2000 --valid-pairs 100 --test-pairs 100"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="new directory for {train,valid,test}.{en,de,kind}")
    parser.add_argument(
        "--train-pairs", type=positive, default=20_000, metavar="N", help="sentences to train on (default: 20,000)"
    )
    parser.add_argument(
        "--valid-pairs", type=positive, default=1_000, metavar="N", help="sentences to validate on (default: 1,000)"
    )
    parser.add_argument(
        "--test-pairs", type=positive, default=1_000, metavar="N", help="sentences to test on (default: 1,000)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="decides which sentences are drawn (default: 1)"
    )


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.tools.data.cldr_sentences import KINDS

    sizes = [options.train_pairs, options.valid_pairs, options.test_pairs]
    if min(sizes) < len(KINDS):
        raise InputError(
            f"--train-pairs {sizes[0]}, --valid-pairs {sizes[1]}, --test-pairs {sizes[2]}: each split needs at least "
            f"{len(KINDS)} pairs, one per kind"
        )
    with make_directory_atomically(options.directory) as made:
        write_corpus(draw_corpus(sizes, options.seed), made)
    print(f"wrote {sum(sizes)} pairs to {options.directory}")


def draw_corpus(sizes: list[int], seed: int) -> "dict[str, list[tuple[str, Phrase]]]":
    """Per split, its (kind, (English, German)) lines in shuffled order."""
    from torchscale_fairseq.tools.data.cldr_sentences import KINDS

    corpus: dict[str, list[tuple[str, Phrase]]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for index, kind in enumerate(progress(KINDS, "drawing", "kind")):
        shares = [size // len(KINDS) + (index < size % len(KINDS)) for size in sizes]
        pairs = draw_distinct_pairs(kind, sum(shares), random.Random(f"{seed} {kind}"), seen)
        for split, share in zip(SPLITS, shares, strict=True):
            corpus[split] += [(kind, pairs.pop()) for _ in range(share)]
    for split, lines in corpus.items():
        random.Random(f"{seed} {split}").shuffle(lines)
    return corpus


def draw_distinct_pairs(kind: str, wanted: int, rng: random.Random, seen: set[str]) -> "list[Phrase]":
    from torchscale_fairseq.tools.data.cldr_sentences import KINDS, draw_pair

    pairs = []
    for _ in range(20 * wanted):
        english, german = (" ".join(side.split()) for side in draw_pair(KINDS[kind], rng))
        if english not in seen:
            seen.add(english)
            pairs.append((english, german))
        if len(pairs) == wanted:
            return pairs
    raise InputError(f"cannot draw {wanted} different sentences of the kind '{kind}'; ask for fewer pairs")


def write_corpus(corpus: "dict[str, list[tuple[str, Phrase]]]", directory: Path) -> None:
    for split, lines in corpus.items():
        columns = {
            "en": [english for _, (english, _) in lines],
            "de": [german for _, (_, german) in lines],
            "kind": [kind for kind, _ in lines],
        }
        for suffix, column in columns.items():
            text = "".join(f"{line}\n" for line in column)
            (directory / f"{split}.{suffix}").write_text(text, encoding="utf-8")
