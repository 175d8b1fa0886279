"""Train the tokenizer of a data directory for --task pretraining: a SentencePiece model and its dict.txt.

The files are text in UTF-8, JSON lines, Parquet or data sets saved by datasets, as --task pretraining reads them. White
space of any kind and length counts as one space, as torchscale-fairseq data shard-corpus writes it. Nothing else is
changed, and nothing is unknown: characters that do not occur here are encoded as bytes. The
vocabulary has a piece <mask> for masked models, and causal models have the same dictionary.

A tokenizer that exists already is left as it is.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory, write_atomically
from torchscale_fairseq.tools.data import preparation
from torchscale_fairseq.tools.options import add_text_field, location, positive

if TYPE_CHECKING:
    from torchscale_fairseq.data.problems import Problems

EXAMPLE = "torchscale-fairseq data train-tokenizer text/train.txt --output data/shards --vocab-size 1000"
MASK = "<mask>"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "text",
        type=location,
        nargs="+",
        metavar="FILE",
        help="text to learn from: files, patterns or URLs of files, and saved data sets",
    )
    add_text_field(parser)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="the data directory, made if it is missing"
    )
    parser.add_argument(
        "--vocab-size", type=positive, default=32000, metavar="N", help="pieces of the vocabulary (default: 32000)"
    )
    parser.add_argument("--model-type", choices=["unigram", "bpe"], default="unigram", help="default: unigram")
    parser.add_argument(
        "--character-coverage",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of characters that get a piece (default: 1.0)",
    )
    parser.add_argument("--split-digits", action="store_true", help="make every digit a piece of its own")
    parser.add_argument(
        "--lines",
        type=positive,
        default=5_000_000,
        metavar="N",
        help="learn from N lines drawn at random (default: 5,000,000)",
    )
    parser.add_argument("--skip-invalid", action="store_true", help="count and leave out lines that are not text")
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count(), metavar="N", help="threads (default: all cores)"
    )


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.data.problems import Problems
    from torchscale_fairseq.data.text.formats.locations import exists
    from torchscale_fairseq.data.text.sources import files_of

    directory: Path = options.output
    made = [directory / preparation.MODEL_FILE, directory / "dict.txt"]
    if all(path.exists() for path in made):
        print(f"{made[0]} and {made[1].name} are there already; remove them to make others")
        return
    files = [file for text in options.text for file in files_of(text)]
    for file in files:
        if not exists(file):
            raise InputError(f"cannot read {file}: no such file")
    problems = Problems(skip=options.skip_invalid)
    tokenizer = preparation.train_tokenizer(
        text_lines(files, options.text_field, problems),
        options,
        byte_fallback=True,
        user_defined_symbols=[MASK],
        normalization_rule_name="identity",
        input_sentence_size=options.lines,
        shuffle_input_sentence=True,
        num_threads=options.workers,
        train_extremely_large_corpus=options.model_type == "unigram" and options.lines > 10_000_000,
    )
    make_directory(directory)
    with write_atomically(made[0]) as scratch:
        preparation.write_tokenizer(tokenizer, scratch)
    with write_atomically(made[1]) as scratch:
        preparation.write_dictionary(tokenizer, scratch)
    preparation.print_left_out(problems)
    print(f"wrote {made[0]} and {made[1].name}: {tokenizer.get_piece_size()} pieces")


def text_lines(files: list[str], field: str | None, problems: "Problems") -> Iterator[str]:
    """Yield lines of text; one that is too long for SentencePiece in pieces."""
    from tqdm import tqdm

    from torchscale_fairseq.data.text.index import split_line
    from torchscale_fairseq.data.text.raw import field_in, raw_lines

    with tqdm(unit="B", unit_scale=True, desc="reading", disable=None) as bar:
        for file in files:
            for line in raw_lines(file, field_in(file, field), problems):
                bar.update(len(line) + 1)
                if line:
                    yield from (unit.decode().strip() for unit in split_line(line))
