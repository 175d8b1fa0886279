"""Split text into the pieces of a SentencePiece model: a line of standard input to a line of standard output."""

import argparse
import sys
from pathlib import Path

from torchscale_fairseq.core.errors import InputError

EXAMPLE = "torchscale-fairseq data encode-text --model data/text/sentencepiece.bpe.model < text/valid.txt"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="FILE",
        help="a SentencePiece model, such as data/text/sentencepiece.bpe.model",
    )


def run(options: argparse.Namespace) -> None:
    import sentencepiece

    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(options.model))
    except OSError as error:
        raise InputError(f"cannot read --model {options.model}: {error}") from error
    for line in sys.stdin.buffer:
        pieces = tokenizer.encode(line.decode("utf-8").strip(), out_type=str)
        sys.stdout.buffer.write(" ".join(pieces).encode("utf-8") + b"\n")
