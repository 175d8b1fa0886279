"""Raw text to a directory for fairseq-train, for causal and masked language models: SentencePiece, fairseq-preprocess.

Either one file per split (--train, --valid, --test) or one file to be split (--input): UTF-8, a paragraph or sentence
per line. An empty line stays what fairseq takes it for, the end of a document. White space of any kind and length
becomes one space; everything else is kept, and nothing is unknown: characters that do not occur in the training text
are encoded as bytes.

The directory then holds what fairseq-train reads, and beside it sentencepiece.bpe.model (for
--bpe sentencepiece --sentencepiece-model) and raw/test.txt, the test text whose bytes the model predicts. The
vocabulary has a piece <mask>, so that masked models can be asked by text.
"""

import argparse
import functools
import sys
from pathlib import Path

import preparation
from preparation import SPLITS

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory_atomically

PROGRAM = "prepare_language.sh"
MASK = "<mask>"


def parse_options() -> argparse.Namespace:
    return preparation.parse_options(preparation.option_parser(PROGRAM, __doc__, file="FILE", what="one file"))


def prepare(options: argparse.Namespace) -> None:
    with make_directory_atomically(options.output) as made:
        work = made / "work"
        splits = read_splits(options)
        tokenizer = preparation.train_tokenizer(
            splits["train"],
            options,
            byte_fallback=True,
            user_defined_symbols=[MASK],
            normalization_rule_name="identity",
            max_sentence_length=max(len(line.encode()) for line in splits["train"]),
        )
        preparation.write_tokenizer(tokenizer, made / preparation.MODEL_FILE)
        for split, lines in splits.items():
            encoded = tokenizer.encode(lines, out_type=str)
            preparation.write_lines((" ".join(pieces) for pieces in encoded), work / split)
        preparation.write_lines(splits["test"], made / "raw" / "test.txt")
        preparation.write_dictionary(tokenizer, work / "dict.txt")
        preparation.preprocess(work, made, options, "--only-source")
    counts = ", ".join(f"{len(lines)} {split}" for split, lines in splits.items())
    print(f"wrote {options.output}: {counts} lines, {tokenizer.get_piece_size()} pieces")


def read_splits(options: argparse.Namespace) -> dict[str, list[str]]:
    if not options.input:
        return {split: read_text(f"--{split}", Path(getattr(options, split))) for split in SPLITS}
    lines = read_text("--input", Path(options.input))
    return {
        split: [lines[index] for index in chosen] for split, chosen in preparation.draw_lines(lines, options).items()
    }


def read_text(option: str, path: Path) -> list[str]:
    lines = [" ".join(line.split()) for line in preparation.read_lines(option, path)]
    if not any(lines):
        raise InputError(f"{option}: {path} has no text")
    return lines


if __name__ == "__main__":
    sys.exit(preparation.run_to_exit_code(PROGRAM, functools.partial(prepare, parse_options())))
