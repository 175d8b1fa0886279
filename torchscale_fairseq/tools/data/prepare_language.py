"""Make a data directory for language models, causal and masked, from text: SentencePiece, fairseq-preprocess.

Name one file per split (--train, --valid, --test), or one file to split (--input), in UTF-8 with a paragraph or
sentence per line, or in another format of --task pretraining, such as JSON lines. An empty line ends a document. White
space of any kind and length becomes one space; everything else is kept, and nothing is unknown: characters that do not
occur in the training text are encoded as bytes.

The directory holds fairseq's binary files; sentencepiece.bpe.model, for --bpe sentencepiece --sentencepiece-model; and
raw/test.txt, the test text whose bytes the model predicts. The vocabulary has a piece <mask> for fill-masks.
"""

import argparse
from typing import TYPE_CHECKING

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.files import make_directory_atomically
from torchscale_fairseq.tools.data import preparation
from torchscale_fairseq.tools.data.splits import SPLITS
from torchscale_fairseq.tools.options import add_text_field

if TYPE_CHECKING:
    from torchscale_fairseq.data.problems import Problems

EXAMPLE = (
    "torchscale-fairseq data prepare-language --train text/train.txt --valid text/valid.txt --test text/test.txt \\\n"
    "    --output data/text --vocab-size 1000"
)
MASK = "<mask>"


def add_options(parser: argparse.ArgumentParser) -> None:
    preparation.add_preparation_options(parser, file="FILE", what="one file")
    add_text_field(parser)
    parser.add_argument("--skip-invalid", action="store_true", help="count and leave out lines that are not text")


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.data.problems import Problems

    preparation.check_options(options)
    problems = Problems(skip=options.skip_invalid)
    with make_directory_atomically(options.output) as made:
        work = made / "work"
        splits = read_splits(options, problems)
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
    preparation.print_left_out(problems)
    counts = ", ".join(f"{len(lines)} {split}" for split, lines in splits.items())
    print(f"wrote {options.output}: {counts} lines, {tokenizer.get_piece_size()} pieces")


def read_splits(options: argparse.Namespace, problems: "Problems") -> dict[str, list[str]]:
    if not options.input:
        return {
            split: read_text(f"--{split}", getattr(options, split), options.text_field, problems) for split in SPLITS
        }
    lines = read_text("--input", options.input, options.text_field, problems)
    return {
        split: [lines[index] for index in chosen] for split, chosen in preparation.draw_lines(lines, options).items()
    }


def read_text(option: str, location: str, field: str | None, problems: "Problems") -> list[str]:
    from torchscale_fairseq.data.text.raw import field_in, raw_lines
    from torchscale_fairseq.data.text.sources import files_of

    lines = [line.decode() for file in files_of(location) for line in raw_lines(file, field_in(file, field), problems)]
    if not any(lines):
        raise InputError(f"{option}: {location} has no text")
    return lines
