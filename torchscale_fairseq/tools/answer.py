"""Answer prompts with a language model that was trained with --task instruction_tuning.

A line of the input is a prompt, or JSON with "prompt" or "messages", which is answered by JSON with "completion".
"""

import argparse
import fileinput
import json
from pathlib import Path
from typing import TYPE_CHECKING

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.reporting import print_sentence
from torchscale_fairseq.tools.options import add_tokenizer, positive

if TYPE_CHECKING:
    from torchscale_fairseq.tools.answering import Answerer

EXAMPLE = (
    "echo 'What is a tensor?' |\n"
    "    torchscale-fairseq answer --checkpoint runs/instructions/checkpoint_best.pt --data data/text"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a causal language model")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="the data directory of the training, with its tokenizer (and dict.txt if it has one)",
    )
    add_tokenizer(parser, trained=True)
    parser.add_argument("--input", default="-", metavar="FILE", help="a file of prompts (default: standard input)")
    parser.add_argument(
        "--max-tokens",
        type=positive,
        default=256,
        metavar="N",
        help="maximum length of an answer in tokens (default: 256)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="divides the logits before a token is drawn; 0 takes the likeliest token (default: 0)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="draw among the likeliest tokens of this total probability (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the random draws (default: 1)")


def run(options: argparse.Namespace) -> int:
    from torchscale_fairseq.tools.answering import Answerer, Sampling

    sampling = Sampling(options.max_tokens, options.temperature, options.top_p, options.seed)
    answerer = Answerer(options.checkpoint, options.data, sampling, options.tokenizer_file)
    answered = True
    with fileinput.input([options.input], encoding="utf-8") as lines:
        for number, line in enumerate(map(str.strip, lines), start=1):
            try:
                print(_answer(answerer, line) if line else "", flush=True)
            except InputError as error:
                print_sentence(f"line {number}: {error}", options.program)
                answered = False
    return 0 if answered else 1


def _answer(answerer: "Answerer", line: str) -> str:
    from torchscale_fairseq.data.instructions.conversations import PROMPTS, conversation_of
    from torchscale_fairseq.data.text.formats import Document
    from torchscale_fairseq.data.text.formats.lines import record_of

    if not line.startswith("{"):
        return answerer.answer([{"role": "user", "content": line}])
    record = record_of(Document(1, line.encode()))
    if record.reason is not None:
        raise InputError(f"the prompt {record.reason}.")
    messages = conversation_of(record.content, "the prompt", PROMPTS)
    return json.dumps({"completion": answerer.answer(messages)}, ensure_ascii=False)
