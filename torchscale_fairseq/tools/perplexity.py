"""Print the perplexity of the test set per token and per byte, from the output of fairseq-eval-lm.

Figures per byte compare models with different vocabularies. Each token stands for the bytes of its piece, and </s> for
the end of the line or document. Together they are the bytes of raw/test.txt, which data prepare-language encodes
without loss, or else those of the split test of a data directory of --task pretraining.
"""

import argparse
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.tools.options import add_reading

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
        help="the directory that torchscale-fairseq data prepare-language made, or one of --task pretraining",
    )
    add_reading(parser)


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.data.text.tokenizers import find_tokenizer

    raw = options.data / "raw/test.txt"
    if raw.exists() or not (options.tokenizer_file or find_tokenizer(str(options.data))):
        text = read_bytes(raw).decode()
        counted = (count_tokens(text, options.data / "sentencepiece.bpe.model"), len(text.encode()))
        print(table(read_score(options.log, *counted, str(raw))))
    else:
        counted = count_documents(str(options.data), options.text_field, options.tokenizer_file)
        print(table(read_score(options.log, *counted, f"the split test of {options.data}")))


def read_score(log: Path, tokens: int, size: int, test: str) -> Score:
    """Read the log, and check that every token of the test set was scored.

    Args:
        log: the file.
        tokens, size: of the test set, the size in bytes.
        test: its name.

    Raises:
        InputError: the log cannot be read, or is one of another test set.
    """
    printed = read_bytes(log).decode(errors="replace")
    evaluated, losses = TOKENS.findall(printed), LOSS.findall(printed)
    if not evaluated or not losses:
        raise InputError(f"{log} has no 'Evaluated ... tokens' and 'Loss (base 2)'; give what fairseq-eval-lm printed")
    scored = int(evaluated[-1].replace(",", ""))
    if scored != tokens:
        raise InputError(
            f"fairseq-eval-lm scored {scored} tokens, but {test} has {tokens}; run it on the test set of "
            "--data, with --user-dir torchscale_fairseq and the --tokens-per-sample of the training"
        )
    return Score(tokens, size, float(losses[-1]))


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


def count_documents(data: str, field: str, tokenizer_file: str | None) -> tuple[int, int]:
    """Count tokens and bytes of the split test of --task pretraining, with an end for each line or document."""
    from torchscale_fairseq.data.problems import Problems
    from torchscale_fairseq.data.text.sources import read_sources, read_texts
    from torchscale_fairseq.data.text.tokenizers import tokenizer_of

    encode = tokenizer_of(data, tokenizer_file)
    tokens = size = 0
    for source in read_sources(data, "test", Problems(skip=False), field):
        for texts in chain.from_iterable(read_texts(shard, source.field) for shard in source.shards):
            for text, pieces in zip(texts, encode.documents(texts), strict=True):
                tokens += len(pieces) + bool(pieces)
                size += len(text) + bool(pieces)
    return tokens, size


def table(score: Score) -> str:
    rows = [("token", score.tokens, score.bits_per_token), ("byte", score.size, score.bits_per_byte)]
    lines = [f"{'':<9} {'count':>10} {'perplexity':>11} {'bits':>7}"]
    lines += [f"per {unit:<5} {count:>10,} {2**bits:>11.2f} {bits:>7.3f}" for unit, count, bits in rows]
    return "\n".join(lines)
