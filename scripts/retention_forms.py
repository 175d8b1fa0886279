"""Continues texts, one per line, with a RetNet through each form of retention, and says whether they agree.

parallel and chunkwise compute the whole text anew for each token; recurrent takes in the prompt at once and then one
token at a time, with a state of constant size. Tokens are the likeliest ones. Exit code 1 if the forms disagree.
"""

import argparse
import fileinput
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

from torchscale_fairseq import plugin
from torchscale_fairseq.core.architectures.retnet import RetNetDecoder
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.layers.retention import MultiScaleRetention
from torchscale_fairseq.core.reporting import run_command

ALLOWED = 1e-3
"""Largest difference of a log-probability."""


class Continuation:
    """A model with what it needs to read and write text.

    Args:
        checkpoint: of a RetNet language model.
        data: the directory with its dictionary and SentencePiece model.

    Raises:
        InputError: the model is no RetNet.
        OSError: one of the files cannot be read.
    """

    def __init__(self, checkpoint: Path, data: Path):
        from fairseq import checkpoint_utils  # which takes seconds that --help is spared

        pieces = (data / "sentencepiece.bpe.model").read_bytes()
        self.tokenizer = sentencepiece.SentencePieceProcessor(model_proto=pieces)
        models, _, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(checkpoint)], arg_overrides={"data": str(data)}
        )
        self.decoder: Any = models[0].eval().decoder
        if not isinstance(self.decoder, RetNetDecoder):
            raise InputError(f"{checkpoint} has no retention; give a checkpoint of --arch retnet_small, say")
        self.dictionary = task.source_dictionary

    def encode(self, text: str) -> Tensor:
        """(1, tokens), with the </s> that every line begins after."""
        pieces = " ".join(self.tokenizer.encode(text, out_type=str))
        tokens = self.dictionary.encode_line(pieces, add_if_not_exist=False, append_eos=False).long()
        return torch.cat((torch.tensor([self.dictionary.eos()]), tokens))[None]

    def decode(self, tokens: Tensor) -> str:
        """The text of (1, tokens)."""
        return self.tokenizer.decode([self.dictionary[i] for i in tokens[0, 1:].tolist()])

    @torch.no_grad()
    def whole(self, prompt: Tensor, length: int, *, chunkwise: bool) -> tuple[Tensor, Tensor]:
        """Tokens, (1, tokens), and the log-probabilities that they were chosen by, (length, vocabulary)."""
        for module in self.decoder.modules():
            if isinstance(module, MultiScaleRetention):
                module.chunkwise, module.chunk_size = chunkwise, 8
        return greedily(prompt, length, lambda tokens: self.decoder(tokens)[0])

    @torch.no_grad()
    def recurrent(self, prompt: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The same from a state."""
        state: dict[str, Any] = {}
        return greedily(prompt, length, lambda tokens: self.decoder(tokens, incremental_state=state)[0])


def greedily(tokens: Tensor, length: int, logits: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    chosen_by = []
    for _ in range(length):
        chosen_by.append(logits(tokens)[0, -1].log_softmax(-1))
        tokens = torch.cat((tokens, chosen_by[-1].argmax().view(1, 1)), 1)
    return tokens, torch.stack(chosen_by)


def agree(continuation: Continuation, text: str, length: int) -> bool:
    """Print a continuation and how far the forms are apart."""
    prompt = continuation.encode(text)
    tokens, parallel = continuation.whole(prompt, length, chunkwise=False)
    others = {
        "chunkwise": continuation.whole(prompt, length, chunkwise=True),
        "recurrent": continuation.recurrent(prompt, length),
    }
    print(continuation.decode(tokens))
    same = True
    for name, (found, lprobs) in others.items():
        difference = (lprobs - parallel).abs().max().item()
        same &= torch.equal(found, tokens) and difference < ALLOWED
        verdict = "same" if torch.equal(found, tokens) else "other"
        print(f"    {name}: {verdict} tokens as parallel, log-probabilities differ by up to {difference:.1g}")
    return same


def main() -> int:
    options = parse_options()
    plugin.register()
    continuation = Continuation(options.checkpoint, options.data)
    with fileinput.input([options.input], encoding="utf-8") as lines:
        verdicts = [agree(continuation, line.strip(), options.length) for line in lines]
    return 0 if all(verdicts) else 1


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="retention_forms.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="of a RetNet language model")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="the directory of its dict.txt and SentencePiece model",
    )
    parser.add_argument("--input", default="-", metavar="FILE", help="beginnings of texts; default: what is typed")
    parser.add_argument("--length", type=int, default=30, metavar="N", help="tokens to add; default 30")
    options = parser.parse_args()
    if options.length < 1:
        parser.error(f"--length ({options.length}) must be at least 1")
    return options


if __name__ == "__main__":
    run_command(main)
