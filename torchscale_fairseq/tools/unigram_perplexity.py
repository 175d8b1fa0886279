"""Print the perplexity of a subset under a unigram model, which guesses by frequency alone.

Frequencies are those of the training text, each token counted once more than it occurs. A masked language model that
has learnt anything from the context is well below. It reads a data directory of --task pretraining.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from torchscale_fairseq.tools.options import add_reading
from torchscale_fairseq.tools.progress import progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from torchscale_fairseq.data.text.tokenizers import Tokenizer

EXAMPLE = "torchscale-fairseq unigram-perplexity data/shards --subset valid"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", type=Path, metavar="DIR", help="the directory that torchscale-fairseq data shard-corpus made"
    )
    parser.add_argument("--subset", default="test", metavar="SPLIT", help="the split to guess (default: test)")
    add_reading(parser)


def run(options: argparse.Namespace) -> None:
    from torchscale_fairseq.data.text.tokenizers import tokenizer_of

    encoder = tokenizer_of(str(options.data), options.tokenizer_file)
    train, guessed = (
        count_tokens(str(options.data), split, encoder, options.text_field) for split in ("train", options.subset)
    )
    print(f"guessing by frequency: perplexity {perplexity(train, guessed):.1f} for {guessed.sum():,} tokens")


def count_tokens(data: str, split: str, encoder: "Tokenizer", field: str) -> "NDArray[np.int64]":
    """How often each piece occurs, and at the end </s>, which ends each line or document."""
    import numpy as np

    from torchscale_fairseq.data.problems import Problems
    from torchscale_fairseq.data.text.sources import read_sources, read_texts

    counts = np.zeros(len(encoder.pieces()) + 1, dtype=np.int64)
    sources = read_sources(data, split, Problems(skip=False), field)
    shards = [(shard, source.field) for source in sources for shard in source.shards]
    for shard, its_field in progress(shards, f"counting {split}", "shard"):
        for texts in read_texts(shard, its_field):
            encoded = encoder.documents(texts)
            pieces = [piece for text in encoded for piece in text]
            counts[:-1] += np.bincount(np.array(pieces, dtype=np.int64), minlength=len(counts) - 1)
            counts[-1] += sum(map(bool, encoded))
    return counts


def perplexity(train: "NDArray[np.int64]", guessed: "NDArray[np.int64]") -> float:
    """Perplexity of counted tokens under the frequencies of others, each raised by one."""
    import numpy as np

    log_probabilities = np.log(train + 1) - np.log((train + 1).sum())
    return float(np.exp(-(guessed * log_probabilities).sum() / guessed.sum()))
