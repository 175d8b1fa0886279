"""Fills the masked words of texts, one per line, with a masked language model: the likeliest pieces for each <mask>.

A <mask> stands for one piece of the vocabulary, mostly a word. A piece that continues the word before it is printed
with three dots in front. Empty lines stay empty; a line that cannot be filled is named, and the next ones are filled.
"""

import argparse
import fileinput
import sys
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

from torchscale_fairseq import plugin
from torchscale_fairseq.core.errors import InputError

MASK = "<mask>"
WORD_START = "\u2581"
"""What SentencePiece writes for the space before a word."""

Candidate = tuple[str, float]
"""A piece and its probability."""


class MaskFiller:
    """A model with what it needs to read text.

    Args:
        checkpoint: of a model that was trained with --task masked_lm or --task pretraining.
        data: the directory with its dictionary and SentencePiece model.

    Raises:
        InputError: the model is not a masked one.
        OSError: one of the files cannot be read.
    """

    def __init__(self, checkpoint: Path, data: Path):
        from fairseq import checkpoint_utils, utils  # which takes seconds that --help is spared

        pieces = (data / "sentencepiece.bpe.model").read_bytes()
        self.tokenizer = sentencepiece.SentencePieceProcessor(model_proto=pieces)
        models, config, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(checkpoint)], arg_overrides={"data": str(data)}
        )
        if getattr(task, "objective", config.task._name) not in ("masked", "masked_lm"):
            raise InputError(
                f"{checkpoint} was trained with --task {config.task._name}; a model of --task masked_lm, or of --task "
                "pretraining with --objective masked, fills masks"
            )
        self.model: Any = models[0].eval()
        self.dictionary = task.source_dictionary
        self.max_tokens = utils.resolve_max_positions(task.max_positions(), self.model.max_positions())

    @torch.no_grad()
    def fill(self, text: str, count: int) -> list[list[Candidate]]:
        """Returns the likeliest candidates for each mask of the text, in order.

        Raises:
            InputError: the text has no mask, or is too long.
        """
        tokens = self.encode(text)
        masks = tokens == self.dictionary.index(MASK)
        probabilities = self.model(tokens[None])[0][0, masks].float().softmax(-1)
        best = probabilities.topk(min(count, len(self.dictionary)))
        return [
            [(self.dictionary[index], value) for index, value in zip(row, values, strict=True)]
            for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def encode(self, text: str) -> Tensor:
        """Returns what the model is trained on: <s>, pieces, </s>; a mask takes the space before it along."""
        pieces = " ".join(["<s>", *self.tokenizer.encode(text, out_type=str)])
        pieces = pieces.replace(f" {WORD_START} {MASK}", f" {MASK}")
        if MASK not in pieces.split():
            raise InputError(f"'{text}' has no {MASK}, or the SentencePiece model does not know it")
        tokens = self.dictionary.encode_line(pieces, add_if_not_exist=False).long()
        if len(tokens) > self.max_tokens:
            raise InputError(
                f"'{text[:40]}...' is {len(tokens)} tokens with <s> and </s>, but the model reads {self.max_tokens}; "
                "shorten it"
            )
        return tokens


def main() -> int:
    options = parse_options()
    plugin.register()
    try:
        filler = MaskFiller(options.checkpoint, options.data)
        with fileinput.input([options.input], encoding="utf-8") as lines:
            failed = [
                number for number, line in enumerate(lines, 1) if not answer(filler, line.strip(), number, options)
            ]
    except (InputError, OSError) as error:
        print(f"fill_masks.py: {error}", file=sys.stderr)
        return 1
    return 1 if failed else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fill_masks.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="of a masked model")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="the directory of its dict.txt and SentencePiece model"
    )
    parser.add_argument(
        "--input", default="-", metavar="FILE", help=f"lines with {MASK} in them; default: what is typed"
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="candidates for each mask; default 5")
    options = parser.parse_args()
    if options.top_k < 1:
        parser.error(f"--top-k ({options.top_k}) must be at least 1")
    return options


def answer(filler: MaskFiller, text: str, number: int, options: argparse.Namespace) -> bool:
    """Prints a line and the candidates for its masks, or says why there are none; returns whether it could."""
    try:
        rows = filler.fill(text, options.top_k) if text else []
    except InputError as error:
        print(f"fill_masks.py: line {number}: {error}", file=sys.stderr)
        return False
    print(text)
    for row in rows:
        print("   ", "  ".join(f"{spelled(piece)} {probability:.1%}" for piece, probability in row))
    return True


def spelled(piece: str) -> str:
    """A piece as people read it; punctuation and symbols such as </s> as they are."""
    if piece.startswith(WORD_START):
        return piece.removeprefix(WORD_START)
    return f"...{piece}" if piece[0].isalnum() else piece


if __name__ == "__main__":
    sys.exit(main())
