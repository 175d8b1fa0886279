"""fairseq-train and fairseq-generate with this package's translation model next to stock fairseq's, in one run.

    torchscale-fairseq data catalog-corpus data/catalog.en-de
    torchscale-fairseq data prepare-translation --source-lang en --target-lang de --train data/catalog.en-de/train \\
      --valid data/catalog.en-de/valid --test data/catalog.en-de/test --output data/catalog.en-de.bin --vocab-size 4000
    python -m benchmarks.translation data/catalog.en-de.bin                  # on a GPU, --fp16
    python -m benchmarks.translation data/catalog.en-de.bin --sides transformer compiled --no-generation
    python -m benchmarks.translation data/catalog.en-de.bin --device cpu --max-tokens 512 --updates 100 --small

The sides are stock's ``transformer``, ``mt_deepnorm``, and ``compiled``: the same with --compile, which generates as
without it. All are 6 + 6 layers of width 512 with tied embeddings on the same batches of sentences of uneven length.
Stock runs without this package. The training set is repeated until an epoch is longer than a training, which would
otherwise stop at each end of one to save a checkpoint and to start reading again. Training speed is the median of the
logged words per second, without the first 50 updates; generation is beam search, 5 wide, over the test set.
"""

import argparse
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from fairseq.data.indexed_dataset import make_dataset

from benchmarks.compare import positive
from benchmarks.limited import shown_lines
from benchmarks.report import machine, versions
from benchmarks.throughput import INTERVAL, logged
from torchscale_fairseq import plugin

STOCK, OURS, COMPILED = "transformer", "mt_deepnorm", "compiled"
SIDES = (STOCK, OURS, COMPILED)
SMALL = ["--encoder-embed-dim", "32", "--decoder-embed-dim", "32", "--encoder-layers", "1", "--decoder-layers", "1"]
UPDATES_LEFT_OUT = 20
"""Batches of an epoch beyond the updates that are measured: --fp16 skips some while it finds its loss scale."""


def repeat_training_set(data: Path, folder: Path, batches: int, max_tokens: int) -> None:
    """Fill a folder with links to data, in which the training set is repeated: fairseq trains on train, train1, train2
    and so on as one.

    Args:
        data: binarised text.
        folder: a new one.
        batches: that the repeated set has at least.
        max_tokens: of a batch.
    """
    folder.mkdir()
    for path in data.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    parts = sorted(data.glob("train.*"))
    sides = [make_dataset(str(path.with_suffix("")), impl="mmap") for path in parts if path.suffix == ".idx"]
    tokens = int(np.maximum(*(side.sizes for side in sides)).sum())
    for number in range(1, math.ceil(batches * max_tokens / tokens)):
        for path in parts:
            (folder / path.name.replace("train", f"train{number}", 1)).symlink_to(path.resolve())


def plugin_flags(side: str) -> list[str]:
    """The flags by which a command finds this package, where the side is of it."""
    return [] if side == STOCK else ["--user-dir", plugin.user_dir()]


def train(side: str, folder: Path, data: Path, max_tokens: int, options: argparse.Namespace) -> float:
    """Train to a checkpoint in the folder; target tokens per second."""
    words = ["train", str(data), "--arch", STOCK if side == STOCK else OURS, *plugin_flags(side)]
    words += ["--compile"] if side == COMPILED else []
    words += ["--share-all-embeddings", "--dropout", "0.1"]
    words += ["--upsample-primary", "1"]  # fairseq's default of -1 takes no set that has several parts
    words += ["--optimizer", "adam", "--lr", "5e-4", "--clip-norm", "1", "--max-tokens", str(max_tokens)]
    words += ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--warmup-updates", "100"]
    words += ["--lr-scheduler", "inverse_sqrt", "--max-update", str(options.updates), "--save-dir", str(folder)]
    words += ["--disable-validation", "--no-epoch-checkpoints", "--no-save-optimizer-state", "--log-format", "json"]
    words += ["--log-interval", str(INTERVAL), *(SMALL if options.small else []), *options.device_flags]
    return statistics.median(float(line["wps"]) for line in logged(run(words)))


def generate(side: str, folder: Path, options: argparse.Namespace) -> float:
    """Sentences per second."""
    words = ["generate", str(options.data), *plugin_flags(side), "--path", str(folder / "checkpoint_last.pt")]
    words += ["--beam", "5"]
    words += ["--max-len-a", "1.5", "--max-len-b", "10", "--batch-size", "64", *options.device_flags]
    return float(re.findall(r"Translated .* \(([\d.]+) sentences/s", run(words))[-1])


def run(words: list[str]) -> str:
    """The output of a command of fairseq, whose log also goes to stderr as it comes.

    Raises:
        SystemExit: it failed.
    """
    command, *arguments = words
    status, text = run_and_show([sys.executable, "-m", f"fairseq_cli.{command}", *arguments])
    if status:
        raise SystemExit(f"translation.py: fairseq-{shlex.join(words)} failed:\n{text[-3000:]}")
    return text


def run_and_show(program: list[str]) -> tuple[int, str]:
    """Run a program; its status and output, of which lines of a log also go to stderr as they come."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # stock reads no checkpoint without it
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as done:
        text = "".join(shown_lines(done))
    return done.returncode, text


def main(words: list[str]) -> int:
    options = parse_options(words)
    rows = []
    for max_tokens in options.max_tokens:
        with tempfile.TemporaryDirectory() as folder:
            folders, data = {side: Path(folder) / side for side in options.sides}, Path(folder) / "data"
            repeat_training_set(options.data, data, options.updates + UPDATES_LEFT_OUT, max_tokens)
            speeds = {side: train(side, folders[side], data, max_tokens, options) for side in options.sides}
            rows.append(row(f"training, --max-tokens {max_tokens}, tokens/s", speeds, options.sides))
            if max_tokens == options.max_tokens[-1] and not options.no_generation:
                generating = [side for side in options.sides if side != COMPILED]
                speeds = {side: generate(side, folders[side], options) for side in generating}
                rows.append(row("generation, beam 5, sentences/s", speeds, options.sides))
    print(f"`{shlex.join(['python', '-m', 'benchmarks.translation', *words])}`\n")
    print(f"{machine(options.device)}; {versions()}\n")
    print("\n".join([f"| | {' | '.join(options.sides)} |", f"|---|{'---|' * len(options.sides)}", *rows]))
    return 0


def row(title: str, speeds: dict[str, float], sides: list[str]) -> str:
    """A line of the table, which also goes to stderr: speeds of sides, and how many times stock's they are."""
    cells = {side: f"{speed:,.0f}" for side, speed in speeds.items()}
    for side in speeds:
        if STOCK in speeds and side != STOCK:
            cells[side] += f" ({speeds[side] / speeds[STOCK]:.2f})"
    line = f"| {title} | {' | '.join(cells.get(side, '') for side in sides)} |"
    print(line, file=sys.stderr, flush=True)
    return line


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="translation.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", type=Path, help="text that prepare-translation has prepared")
    add("--device", choices=("cpu", "cuda"), default="cuda", help="(cuda)")
    add("--max-tokens", type=positive, nargs="+", default=[4096, 16384], help="of a batch (4096 16384)")
    add("--updates", type=positive, default=300, help="of each training (300)")
    add("--sides", nargs="+", choices=SIDES, default=list(SIDES), help=f"what to measure ({' '.join(SIDES)})")
    add("--no-generation", action="store_true", help="measure training alone")
    add("--small", action="store_true", help="1 + 1 layers of width 32")
    options = parser.parse_args(words)
    if options.updates < 2 * INTERVAL:
        parser.error(
            f"--updates ({options.updates}) must be at least {2 * INTERVAL}: the first {INTERVAL} do not count"
        )
    if not options.data.is_dir():
        parser.error(f"data ({options.data}) is no folder; torchscale-fairseq data prepare-translation makes one")
    options.device_flags = ["--cpu"] if options.device == "cpu" else ["--fp16"]
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
