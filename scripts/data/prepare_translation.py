"""Raw parallel text to a directory for fairseq-train: one joint SentencePiece model, fairseq-preprocess.

Either two files per split (--train, --valid, --test) or one pair of files to be split (--input). A file is
PREFIX.LANGUAGE, UTF-8, one sentence per line.

The directory then holds what fairseq-train reads, and beside it sentencepiece.bpe.model (for
--bpe sentencepiece --sentencepiece-model) and raw/test.*, the test text as it was, to score against.
"""

import argparse
import functools
import sys
import tempfile
from pathlib import Path

import preparation
import sentencepiece
from preparation import SPLITS, InputError

PROGRAM = "prepare_translation.sh"
Text = dict[str, list[str]]
"""The lines of one split, per language."""


def parse_options() -> argparse.Namespace:
    parser = preparation.option_parser(PROGRAM, __doc__, file="PREFIX.LANGUAGE", what="one pair of files")
    parser.add_argument("--source-lang", required=True, metavar="LANGUAGE", help="suffix of the source files")
    parser.add_argument("--target-lang", required=True, metavar="LANGUAGE", help="suffix of the target files")
    options = preparation.parse_options(parser)
    if options.source_lang == options.target_lang:
        parser.error(f"--source-lang and --target-lang are both '{options.source_lang}'")
    return options


def prepare(options: argparse.Namespace) -> None:
    with preparation.new_directory(options.output) as made, tempfile.TemporaryDirectory(dir=made) as work:
        splits = read_splits(options)
        lines = [line for lines in splits["train"].values() for line in lines]
        tokenizer = preparation.train_tokenizer(lines, made / preparation.MODEL_NAME, options)
        for split, text in splits.items():
            write_pieces(tokenizer, text, Path(work, split))
        for language, lines in splits["test"].items():
            preparation.write_lines(lines, made / "raw" / f"test.{language}")
        preparation.write_dictionary(tokenizer, Path(work, "dict.txt"))
        languages = ("--source-lang", options.source_lang, "--target-lang", options.target_lang)
        preparation.preprocess(Path(work), made, options, *languages, "--joined-dictionary")
    counts = ", ".join(f"{len(text[options.source_lang])} {split}" for split, text in splits.items())
    print(f"wrote {options.output}: {counts} pairs, {tokenizer.get_piece_size()} pieces")


def read_splits(options: argparse.Namespace) -> dict[str, Text]:
    languages = (options.source_lang, options.target_lang)
    if not options.input:
        return {split: read_pair(f"--{split}", getattr(options, split), languages) for split in SPLITS}
    text = read_pair("--input", options.input, languages)
    return {
        split: {language: [lines[index] for index in chosen] for language, lines in text.items()}
        for split, chosen in preparation.draw_lines(text[options.source_lang], options).items()
    }


def read_pair(option: str, prefix: str, languages: tuple[str, str]) -> Text:
    text = {language: read_sentences(option, Path(f"{prefix}.{language}")) for language in languages}
    source, target = (len(lines) for lines in text.values())
    if source != target:
        raise InputError(
            f"{option} {prefix}: {prefix}.{languages[0]} has {source} lines and {prefix}.{languages[1]} has "
            f"{target}; line n of one must translate line n of the other"
        )
    return text


def read_sentences(option: str, path: Path) -> list[str]:
    lines = preparation.read_lines(option, path)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise InputError(f"{option}: {path}, line {number} is empty; remove it from both languages")
    return lines


def write_pieces(tokenizer: sentencepiece.SentencePieceProcessor, text: Text, prefix: Path) -> None:
    for language, lines in text.items():
        encoded = tokenizer.encode(lines, out_type=str)
        for number, pieces in enumerate(encoded, start=1):
            if not pieces:
                raise InputError(
                    f"line {number} of the {prefix.name} split has no visible character in '{language}'; remove it"
                )
        preparation.write_lines((" ".join(pieces) for pieces in encoded), Path(f"{prefix}.{language}"))


if __name__ == "__main__":
    sys.exit(preparation.run_to_exit_code(PROGRAM, functools.partial(prepare, parse_options())))
