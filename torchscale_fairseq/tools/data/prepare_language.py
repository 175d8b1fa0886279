"""Make a data directory for language models, causal and masked, from text: SentencePiece, fairseq-preprocess.

Name one file per split (--train, --valid, --test), or one file to split (--input), in UTF-8 with a paragraph or
sentence per line. An empty line ends a document. White space of any kind and length becomes one space; everything else
is kept, and nothing is unknown: characters that do not occur in the training text are encoded as bytes.

The directory holds fairseq's binary files; sentencepiece.bpe.model, for --bpe sentencepiece --sentencepiece-model; and
raw/test.txt, the test text whose bytes the model predicts. The vocabulary has a piece <mask> for fill-masks.
"""

import argparse
from pathlib import Path

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory_atomically
from torchscale_fairseq.tools.data import preparation
from torchscale_fairseq.tools.data.splits import SPLITS

EXAMPLE = (
    "torchscale-fairseq data prepare-language --train text/train.txt --valid text/valid.txt --test text/test.txt \\\n"
    "    --output data/text --vocab-size 1000"
)
MASK = "<mask>"


def add_options(parser: argparse.ArgumentParser) -> None:
    preparation.add_preparation_options(parser, file="FILE", what="one file")


def run(options: argparse.Namespace) -> None:
    preparation.check_options(options)
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
            preparation.write_pieces(tokenizer, lines, work / split, split)
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
