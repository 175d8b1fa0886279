"""Fill the masked words of texts, one per line, with a masked language model: the likeliest pieces for each <mask>.

A <mask> stands for one piece of the vocabulary, usually a word. A piece that continues the word before it is printed
with three dots in front. Empty lines stay empty; a line that cannot be filled is named, and the other lines are filled.
"""

import argparse
import fileinput
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.reporting import print_sentence
from torchscale_fairseq.tools.options import add_tokenizer, positive

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = (
    "echo 'The <mask> argument is a string.' |\n"
    "    torchscale-fairseq fill-masks --checkpoint runs/masked/checkpoint_best.pt --data data/text"
)
MASK = "<mask>"

Candidate = tuple[str, float]
"""A piece and its probability."""


class MaskFiller:
    """A model with what it needs to read text.

    Args:
        checkpoint: of a model that was trained with --task masked_lm or --task pretraining.
        data: the directory with its dictionary and tokenizer.
        tokenizer_file: the tokenizer; None for that of the training, or else the one in the directory.

    Raises:
        InputError: the model is not a masked one, or the tokenizer cannot be used.
        OSError: the checkpoint cannot be read.
        ModuleNotFoundError: the tokenizer's package is not installed.
    """

    def __init__(self, checkpoint: Path, data: Path, tokenizer_file: str | None = None):
        from torchscale_fairseq import plugin

        plugin.register()
        from fairseq import checkpoint_utils, utils

        from torchscale_fairseq.data.text.tokenizers import tokenizer_of_training
        from torchscale_fairseq.data.text.tokenizers.masked_text import Spelling, masked_text_encoder
        from torchscale_fairseq.hooks.contracts import LearnsByObjective

        models, config, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(checkpoint)], arg_overrides={"data": str(data)}
        )
        objective = task.objective if isinstance(task, LearnsByObjective) else config.task._name
        if objective not in ("masked", "masked_lm"):
            raise InputError(
                f"{checkpoint} was trained with --task {config.task._name}; a model of --task masked_lm, or of --task "
                "pretraining with --objective masked, fills masks"
            )
        tokenizer = tokenizer_of_training(config.task, str(data), tokenizer_file)
        self._symbols = masked_text_encoder(tokenizer)
        self.spelled = Spelling(filter(None, tokenizer.pieces()))
        self.model: Any = models[0].eval()
        self.dictionary = task.source_dictionary
        self.max_tokens = utils.resolve_max_positions(task.max_positions(), self.model.max_positions())

    def fill(self, text: str, count: int) -> list[list[Candidate]]:
        """Returns the likeliest candidates for each mask of the text, in order.

        Raises:
            InputError: the text has no mask, or is too long.
        """
        import torch

        tokens = self.encode(text)
        masks = tokens == self.dictionary.index(MASK)
        with torch.no_grad():
            probabilities = self.model(tokens[None])[0][0, masks].float().softmax(-1)
        best = probabilities.topk(min(count, len(self.dictionary)))
        return [
            [(self.dictionary[index], value) for index, value in zip(row, values, strict=True)]
            for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def encode(self, text: str) -> "Tensor":
        """The input that the model is trained on: <s>, pieces, </s>.

        Raises:
            InputError: the text has no mask, or is too long.
        """
        import torch

        from torchscale_fairseq.data.text.lengths import check_length

        if MASK not in text:
            raise InputError(f"'{text}' has no {MASK}; write it in place of a word")
        numbers = map(self.dictionary.index, self._symbols(text))
        tokens = torch.tensor([self.dictionary.bos(), *numbers, self.dictionary.eos()])
        check_length(text, len(tokens), self.max_tokens)
        return tokens


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a masked language model")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="the data directory of the training, with its tokenizer (and dict.txt if it has one)",
    )
    add_tokenizer(parser, trained=True)
    parser.add_argument(
        "--input", default="-", metavar="FILE", help=f"a file of lines with {MASK} in them (default: standard input)"
    )
    parser.add_argument("--top-k", type=positive, default=5, metavar="N", help="candidates for each mask (default: 5)")


def run(options: argparse.Namespace) -> int:
    filler = MaskFiller(options.checkpoint, options.data, options.tokenizer_file)
    with fileinput.input([options.input], encoding="utf-8") as lines:
        answered = [answer(filler, line.strip(), number, options) for number, line in enumerate(lines, 1)]
    return 0 if all(answered) else 1


def answer(filler: MaskFiller, text: str, number: int, options: argparse.Namespace) -> bool:
    """Print a line and the candidates for its masks, or say why there are none; returns whether there are."""
    try:
        rows = filler.fill(text, options.top_k) if text else []
    except InputError as error:
        print_sentence(f"line {number}: {error}", options.program)
        return False
    print(text)
    for row in rows:
        print("   ", "  ".join(f"{filler.spelled(piece)} {probability:.1%}" for piece, probability in row))
    return True
