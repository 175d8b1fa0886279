"""Make a data directory for translation from parallel text: one joint SentencePiece model, fairseq-preprocess.

Name two files per split (--train, --valid, --test), or one pair of files to split (--input). A file is PREFIX.LANGUAGE
in UTF-8, with one sentence per line.

The directory holds fairseq's binary files; sentencepiece.bpe.model, for --bpe sentencepiece --sentencepiece-model; and
raw/test.*, the unchanged test text, to score against.
"""

import argparse
from pathlib import Path

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory_atomically
from torchscale_fairseq.tools.data import preparation
from torchscale_fairseq.tools.data.splits import SPLITS

EXAMPLE = (
    "torchscale-fairseq data prepare-translation --source-lang en --target-lang de --train text/train \\\n"
    "    --valid text/valid --test text/test --output data/en-de --vocab-size 1000"
)
NORMALIZATION = "nmt_nfkc"
LISTED = 10
"""Line numbers that a message names at most."""
Text = dict[str, list[str]]
"""The lines of one split, per language."""


def add_options(parser: argparse.ArgumentParser) -> None:
    preparation.add_preparation_options(parser, file="PREFIX.LANGUAGE", what="one pair of files")
    parser.add_argument("--source-lang", required=True, metavar="LANGUAGE", help="suffix of the source files")
    parser.add_argument("--target-lang", required=True, metavar="LANGUAGE", help="suffix of the target files")
    parser.add_argument("--drop-empty", action="store_true", help="leave out pairs of lines in which one has no text")


def run(options: argparse.Namespace) -> None:
    preparation.check_options(options)
    if options.source_lang == options.target_lang:
        raise InputError(f"--source-lang and --target-lang are both '{options.source_lang}'; name two languages")
    with make_directory_atomically(options.output) as made:
        work = made / "work"
        splits = read_splits(options)
        lines = [line for lines in splits["train"].values() for line in lines]
        tokenizer = preparation.train_tokenizer(lines, options, normalization_rule_name=NORMALIZATION)
        preparation.write_tokenizer(tokenizer, made / preparation.MODEL_FILE)
        for split, text in splits.items():
            for language, lines in text.items():
                preparation.write_pieces(tokenizer, lines, work / f"{split}.{language}", f"{split}.{language}")
        for language, lines in splits["test"].items():
            preparation.write_lines(lines, made / "raw" / f"test.{language}")
        preparation.write_dictionary(tokenizer, work / "dict.txt")
        languages = ("--source-lang", options.source_lang, "--target-lang", options.target_lang)
        preparation.preprocess(work, made, options, *languages, "--joined-dictionary")
    counts = ", ".join(f"{len(text[options.source_lang])} {split}" for split, text in splits.items())
    print(f"wrote {options.output}: {counts} pairs, {tokenizer.get_piece_size()} pieces")


def read_splits(options: argparse.Namespace) -> dict[str, Text]:
    if not options.input:
        return {split: read_pair(f"--{split}", getattr(options, split), options) for split in SPLITS}
    text = read_pair("--input", options.input, options)
    return {
        split: {language: [lines[index] for index in chosen] for language, lines in text.items()}
        for split, chosen in preparation.draw_lines(text[options.source_lang], options).items()
    }


def read_pair(option: str, prefix: str, options: argparse.Namespace) -> Text:
    """Read both languages' lines, without pairs of which one is empty."""
    languages = (options.source_lang, options.target_lang)
    text = {language: preparation.read_lines(option, Path(f"{prefix}.{language}")) for language in languages}
    source, target = (len(lines) for lines in text.values())
    if source != target:
        raise InputError(
            f"{option} {prefix}: {prefix}.{languages[0]} has {source} lines and {prefix}.{languages[1]} has "
            f"{target}; line n of one must translate line n of the other"
        )
    empty = {language: empty_lines(lines) for language, lines in text.items()}
    dropped = set().union(*empty.values())
    if len(dropped) == source:
        raise InputError(f"{option} {prefix}: no line has text in both languages")
    if dropped and not options.drop_empty:
        found = ", ".join(f"{prefix}.{language}: {listed(lines)}" for language, lines in empty.items() if lines)
        raise InputError(
            f"{option}: lines without text in {found}; remove them from both languages, or leave them out with "
            "--drop-empty"
        )
    if dropped:
        print(f"{option} {prefix}: left out {len(dropped)} of {source} pairs of lines, of which one has no text")
    return {
        language: [line for number, line in enumerate(lines, 1) if number not in dropped]
        for language, lines in text.items()
    }


def empty_lines(lines: list[str]) -> list[int]:
    """The numbers of the lines of which SentencePiece would leave nothing."""
    import sentencepiece

    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=NORMALIZATION)
    return [number for number, text in enumerate(normalizer.normalize(lines), 1) if not text]


def listed(lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:LISTED]))
    return shown if len(lines) <= LISTED else f"{shown} and {len(lines) - LISTED} more"
