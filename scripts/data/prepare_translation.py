"""Raw parallel text to a directory for fairseq-train: one joint SentencePiece model, fairseq-preprocess.

Either two files per split (--train, --valid, --test) or one pair of files to be split (--input). A file is
PREFIX.LANGUAGE, UTF-8, one sentence per line.

The directory then holds what fairseq-train reads, and beside it sentencepiece.bpe.model (for
--bpe sentencepiece --sentencepiece-model) and raw/test.*, the test text as it was, to score against.
"""

import argparse
import functools
import sys
from pathlib import Path

import preparation
import sentencepiece
from preparation import SPLITS

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory_atomically

PROGRAM = "prepare_translation.sh"
NORMALIZATION = "nmt_nfkc"
LISTED = 10
"""Line numbers that a message names at most."""
Text = dict[str, list[str]]
"""The lines of one split, per language."""


def parse_options() -> argparse.Namespace:
    parser = preparation.option_parser(PROGRAM, __doc__, file="PREFIX.LANGUAGE", what="one pair of files")
    parser.add_argument("--source-lang", required=True, metavar="LANGUAGE", help="suffix of the source files")
    parser.add_argument("--target-lang", required=True, metavar="LANGUAGE", help="suffix of the target files")
    parser.add_argument("--drop-empty", action="store_true", help="leave out pairs of lines of which one has no text")
    options = preparation.parse_options(parser)
    if options.source_lang == options.target_lang:
        parser.error(f"--source-lang and --target-lang are both '{options.source_lang}'")
    return options


def prepare(options: argparse.Namespace) -> None:
    with make_directory_atomically(options.output) as made:
        work = made / "work"
        splits = read_splits(options)
        lines = [line for lines in splits["train"].values() for line in lines]
        tokenizer = preparation.train_tokenizer(lines, options, normalization_rule_name=NORMALIZATION)
        preparation.write_tokenizer(tokenizer, made / preparation.MODEL_FILE)
        for split, text in splits.items():
            write_pieces(tokenizer, text, work / split)
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
    """Reads both languages' lines, without pairs of which one is empty."""
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
    """Returns the numbers of the lines of which SentencePiece would leave nothing."""
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=NORMALIZATION)
    return [number for number, text in enumerate(normalizer.normalize(lines), 1) if not text]


def listed(lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:LISTED]))
    return shown if len(lines) <= LISTED else f"{shown} and {len(lines) - LISTED} more"


def write_pieces(tokenizer: sentencepiece.SentencePieceProcessor, text: Text, prefix: Path) -> None:
    for language, lines in text.items():
        encoded = tokenizer.encode(lines, out_type=str)
        preparation.write_lines((" ".join(pieces) for pieces in encoded), Path(f"{prefix}.{language}"))


if __name__ == "__main__":
    sys.exit(preparation.run_to_exit_code(PROGRAM, functools.partial(prepare, parse_options())))
