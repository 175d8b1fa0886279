"""The reader of --task pretraining and fairseq's binarised masked_lm: tokens per second, in one run, one table.

    python -m benchmarks.reading                    # text of Python's standard library, four times over
    python -m benchmarks.reading --text my.txt --workers 0 1 2

The one tokenizes text as it reads, the other reads numbers that were tokenized before. Both mask, collate, and serve
the same batches of the same text; that the tokens agree is checked first. Starting the workers is not timed.
"""

import argparse
import contextlib
import gc
import io
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.compare import positive
from benchmarks.report import OURS, STOCK, DisagreementError, Row, document

REPOSITORY = Path(__file__).resolve().parent.parent
TOOL = ("-m", "torchscale_fairseq")
SEED = 1


@dataclass(frozen=True)
class Data:
    """The same text in both formats."""

    shards: Path
    binary: Path


def main() -> int:
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder), options)
        try:
            rows, notes = measure(data, options)
        except DisagreementError as error:
            print(f"reading.py: {error}", file=sys.stderr)
            return 1
    print(document(rows, notes, sys.argv[1:], "cpu", "reading"))
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, metavar="FILE", help="default: Python's standard library about itself")
    parser.add_argument("--copies", type=positive, default=4, metavar="N", help="of the text; default 4")
    parser.add_argument("--vocab-size", type=positive, default=8000, metavar="N", help="default 8000")
    parser.add_argument("--tokens-per-sample", type=positive, default=512, metavar="N", help="default 512")
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="default 16")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1], metavar="N", help="default 0 1")
    parser.add_argument("--repeats", type=positive, default=3, metavar="N", help="passes over the text; default 3")
    return parser.parse_args()


def prepare(folder: Path, options: argparse.Namespace) -> Data:
    """Writes the text in both formats, with one tokenizer."""
    text = options.text
    if text is None:
        run(*TOOL, "data", "python-corpus", folder / "corpus")
        text = folder / "corpus/train.txt"
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    (folder / "train.txt").write_text("".join(f"{line}\n" for line in lines * options.copies), encoding="utf-8")
    shards, binary = folder / "shards", folder / "binary"
    run(*TOOL, "data", "train-tokenizer", text, "--output", shards, "--vocab-size", options.vocab_size)
    run(*TOOL, "data", "shard-corpus", shards, "--train", folder / "train.txt")
    with (folder / "pieces").open("w", encoding="utf-8") as file:
        for line in (shards / "shard/train/en/00000.txt").open(encoding="utf-8"):
            file.write(" ".join(tokenizer(shards).encode(line.strip(), out_type=str)) + "\n")
    words = ["--only-source", "--trainpref", folder / "pieces", "--srcdict", shards / "dict.txt", "--destdir", binary]
    run("-m", "fairseq_cli.preprocess", *words)
    return Data(shards, binary)


def run(*words: object) -> None:
    subprocess.run([sys.executable, *map(str, words)], check=True, capture_output=True)


def tokenizer(shards: Path) -> Any:
    """The SentencePiece model, read once."""
    import sentencepiece

    if shards not in _tokenizers:
        _tokenizers[shards] = sentencepiece.SentencePieceProcessor(model_file=str(shards / "sentencepiece.bpe.model"))
    return _tokenizers[shards]


_tokenizers: dict[Path, Any] = {}


def measure(data: Data, options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Passes of both sides, in turns, after their tokens are compared."""
    sides = {STOCK: stock(data, options), OURS: ours(data, options)}
    tokens = {side: Counter(token for batch in start(0) for token in unmasked(batch)) for side, start in sides.items()}
    if tokens[STOCK] != tokens[OURS]:
        raise DisagreementError("the two sides read different tokens, and are not timed")
    rows, notes = [], []
    for workers in options.workers:
        speeds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.repeats):
            for side, start in sides.items():
                speeds[side].append(speed(start(workers)))
        found = {side: median(values) for side, values in speeds.items()}
        total = sum(tokens[OURS].values())
        rows += [
            Row(f"{workers} workers", side, total / value, items=total, unit="tokens") for side, value in found.items()
        ]
        notes.append(f"{workers} workers: ours reads at {found[OURS] / found[STOCK]:.2f} times the speed of stock")
    return rows, [
        *notes,
        f"passes over {total:,} tokens, batches of {options.batch_size} x {options.tokens_per_sample}",
    ]


def unmasked(batch: dict[str, Any]) -> list[int]:
    """The tokens of a batch as they were, without <s> and padding."""
    source, target = batch["net_input"]["src_tokens"], batch["target"]
    original = source.where(target == 1, target)[:, 1:]
    return original[original != 1].tolist()


def speed(batches: Iterator[dict[str, Any]]) -> float:
    """Tokens per second, from the first batch on."""
    next(batches)
    gc.collect()  # the workers of the pass before
    started = time.perf_counter()
    tokens = sum(batch["ntokens"] for batch in batches)
    return tokens / (time.perf_counter() - started)


Start = Callable[[int], Iterator[dict[str, Any]]]


def stock(data: Data, options: argparse.Namespace) -> Start:
    """fairseq's masked_lm."""
    from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask

    config = MaskedLMConfig(data=str(data.binary), tokens_per_sample=options.tokens_per_sample, seed=SEED)
    return starts(MaskedLMTask.setup_task(config), options)


def ours(data: Data, options: argparse.Namespace) -> Start:
    """This package's."""
    from torchscale_fairseq.tasks.pretraining import PretrainingConfig, PretrainingTask

    config = PretrainingConfig(
        data=str(data.shards),
        tokens_per_sample=options.tokens_per_sample,
        sample_break_mode="none",
        seed=SEED,
        train_subset="train",
        num_workers=1,
        update_freq=[1],
    )
    return starts(PretrainingTask.setup_task(config), options)


def starts(task: Any, options: argparse.Namespace) -> Start:
    """Begins a pass with this number of workers."""
    with contextlib.redirect_stdout(io.StringIO()):
        task.load_dataset("train")

    def start(workers: int) -> Iterator[dict[str, Any]]:
        iterator = task.get_batch_iterator(
            task.dataset("train"),
            max_sentences=options.batch_size,
            num_workers=workers,
            seed=SEED,
            disable_iterator_cache=True,
        )
        return iter(iterator.next_epoch_itr())

    return start


if __name__ == "__main__":
    from torchscale_fairseq import plugin

    plugin.register()
    sys.exit(main())
