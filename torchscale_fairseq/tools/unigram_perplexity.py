"""Print the perplexity of a subset under a unigram model, which guesses by frequency alone.

Frequencies are those of the training text, each token counted once more than it occurs. A masked language model that
has learnt anything from the context is well below. It reads a data directory of --task pretraining.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torchscale_fairseq.tools.progress import progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from torchscale_fairseq.data.text.pieces import PieceEncoder

EXAMPLE = "torchscale-fairseq unigram-perplexity data/shards --subset valid"
LINES_AT_ONCE = 10_000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", type=Path, metavar="DIR", help="the directory that torchscale-fairseq data shard-corpus made"
    )
    parser.add_argument("--subset", default="test", metavar="SPLIT", help="the split to guess (default: test)")


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.data.text.pieces import PieceEncoder

    encoder = PieceEncoder(options.data / "sentencepiece.bpe.model")
    train, guessed = (count_tokens(options.data, split, encoder) for split in ("train", options.subset))
    print(f"guessing by frequency: perplexity {perplexity(train, guessed):.1f} for {guessed.sum():,} tokens")


def count_tokens(data: Path, split: str, encoder: "PieceEncoder") -> "NDArray[np.int64]":
    """How often each piece occurs, and at the end how many lines there are, which is how often </s> does."""
    import numpy as np

    from torchscale_fairseq.data.problems import Problems
    from torchscale_fairseq.data.text.sources import read_sources

    counts = np.zeros(len(encoder.pieces()) + 1, dtype=np.int64)
    shards = [shard for source in read_sources(data, split, Problems(skip=False)) for shard in source.shards]
    for shard in progress(shards, f"counting {split}", "shard"):
        for lines in _chunks(shard):
            encoded = encoder(lines)
            pieces = [piece for line in encoded for piece in line]
            counts[:-1] += np.bincount(np.array(pieces, dtype=np.int64), minlength=len(counts) - 1)
            counts[-1] += sum(map(bool, encoded))
    return counts


def _chunks(shard: Path) -> Iterator[list[bytes]]:
    lines = []
    with shard.open("rb") as file:
        for line in file:
            lines.append(line.rstrip(b"\r\n"))
            if len(lines) == LINES_AT_ONCE:
                yield lines
                lines = []
    if lines:
        yield lines


def perplexity(train: "NDArray[np.int64]", guessed: "NDArray[np.int64]") -> float:
    """Perplexity of counted tokens under the frequencies of others, each raised by one."""
    import numpy as np

    log_probabilities = np.log(train + 1) - np.log((train + 1).sum())
    return float(np.exp(-(guessed * log_probabilities).sum() / guessed.sum()))
