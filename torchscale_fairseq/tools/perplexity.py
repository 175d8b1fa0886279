"""Print the perplexity of the test set per token and per byte, from the output of fairseq-eval-lm.

Figures per byte compare models with different vocabularies. Each token stands for the bytes of its piece, and </s> for
the end of the line; together they are the bytes of raw/test.txt, which data prepare-language encodes without loss.
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from torchscale_fairseq.core.errors import InputError

EXAMPLE = "torchscale-fairseq perplexity runs/text/eval-lm.log --data data/text"
TOKENS = re.compile(r"Evaluated ([\d,]+) tokens")
LOSS = re.compile(r"Loss \(base 2\): ([\d.]+)")


@dataclass(frozen=True)
class Score:
    tokens: int
    size: int
    """Bytes of the text, line ends included."""
    bits_per_token: float

    @property
    def bits_per_byte(self) -> float:
        return self.bits_per_token * self.tokens / self.size


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "log", type=Path, metavar="LOG", help="a file with the output of fairseq-eval-lm for the test set"
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="the directory that torchscale-fairseq data prepare-language made",
    )


def run(options: argparse.Namespace) -> None:
    print(table(read_score(options.log, options.data)))


def read_score(log: Path, data: Path) -> Score:
    """Read both, and check that every token of the test set was scored."""
    text = read_bytes(data / "raw/test.txt").decode()
    tokens = count_tokens(text, data / "sentencepiece.bpe.model")
    printed = read_bytes(log).decode(errors="replace")
    evaluated, losses = TOKENS.findall(printed), LOSS.findall(printed)
    if not evaluated or not losses:
        raise InputError(f"{log} has no 'Evaluated ... tokens' and 'Loss (base 2)'; give what fairseq-eval-lm printed")
    scored = int(evaluated[-1].replace(",", ""))
    if scored != tokens:
        raise InputError(
            f"fairseq-eval-lm scored {scored} tokens, but {data}/raw/test.txt has {tokens}; run it on the test set of "
            "--data, with --user-dir torchscale_fairseq and the --tokens-per-sample of the training"
        )
    return Score(tokens, len(text.encode()), float(losses[-1]))


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def count_tokens(text: str, model: Path) -> int:
    """Count what fairseq's binary format holds: each line's pieces, and </s>."""
    import sentencepiece

    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=read_bytes(model))
    lines = text.removesuffix("\n").split("\n")
    return len(lines) + sum(map(len, tokenizer.encode(lines)))


def table(score: Score) -> str:
    rows = [("token", score.tokens, score.bits_per_token), ("byte", score.size, score.bits_per_byte)]
    lines = [f"{'':<9} {'count':>10} {'perplexity':>11} {'bits':>7}"]
    lines += [f"per {unit:<5} {count:>10,} {2**bits:>11.2f} {bits:>7.3f}" for unit, count, bits in rows]
    return "\n".join(lines)
