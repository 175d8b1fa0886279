"""Split text into the pieces of a tokenizer: a line of standard input to a line of standard output.

The tokenizer is a SentencePiece model, a tokenizer.json or a tiktoken file, as --task pretraining reads them.
"""

import argparse
import sys
from pathlib import Path

from torchscale_fairseq.core.errors import InputError

EXAMPLE = "torchscale-fairseq data encode-text --model data/text/sentencepiece.bpe.model < text/valid.txt"
UNKNOWN = "<unk>"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        "--tokenizer-file",
        type=Path,
        required=True,
        metavar="FILE",
        help="the tokenizer, such as data/text/sentencepiece.bpe.model",
    )


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.data.text.tokenizers import open_tokenizer

    if not options.model.is_file():
        raise InputError(f"cannot read --model {options.model}: no such file")
    tokenizer = open_tokenizer(str(options.model))
    pieces = [piece or UNKNOWN for piece in tokenizer.pieces()]
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise InputError(f"line {number} of standard input is not UTF-8; convert it, as with iconv") from error
        (numbers,) = tokenizer([text.encode()])
        sys.stdout.buffer.write(" ".join(pieces[piece] for piece in numbers).encode() + b"\n")
