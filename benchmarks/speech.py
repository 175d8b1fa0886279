"""fairseq-train on speech with this package's model next to stock fairseq's of its size: hours of audio per second of
training, in one run.

    python -m benchmarks.speech                                       # on a GPU, --fp16
    python -m benchmarks.speech --archs s2t_magneto s2t_longnet --options=--compile
    python -m benchmarks.speech --device cpu --utterances 40 --seconds 1 3 --max-tokens 600 --updates 100 --small

Both sides train with CTC and dropout of 0.1 on the same batches of utterances of uneven length, in one epoch, on random
features that this script stores. Stock runs without this package. The speed is the median of the logged ones, without
the first 50 updates.
"""

import argparse
import math
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.compare import positive
from benchmarks.report import machine, versions
from benchmarks.throughput import INTERVAL, logged
from benchmarks.translation import SMALL, run
from torchscale_fairseq import plugin

STOCK = "s2t_transformer_m"
FRAMES_PER_SECOND = 100
TOKENS_PER_SECOND = 4
WORDS = 1000


def write_data(folder: Path, count: int, seconds: tuple[float, float], frames: int = 0) -> float:
    """Write a training split of random features and words.

    Args:
        folder: to make.
        count: utterances with features of their own.
        seconds: shortest and longest utterance.
        frames: that the split should have at least; its manifest lists the utterances again until it does, so that
            training begins no second epoch.

    Returns:
        Hours of audio per target token.
    """
    drawn = np.random.default_rng(1)
    (folder / "features").mkdir(parents=True)
    (folder / "dict.txt").write_text("".join(f"w{index} 1\n" for index in range(WORDS)))
    (folder / "config.yaml").write_text(f"audio_root: {folder.resolve()}\nshuffle: true\n")
    rows, frames_in_all, tokens_in_all = [], 0, 0
    for number in range(count):
        length = int(FRAMES_PER_SECOND * drawn.uniform(*seconds))
        tokens = max(1, TOKENS_PER_SECOND * length // FRAMES_PER_SECOND)
        np.save(folder / f"features/{number}.npy", drawn.standard_normal((length, 80), dtype=np.float32))
        words = " ".join(f"w{index}" for index in drawn.integers(0, WORDS, tokens))
        rows.append(f"features/{number}.npy\t{length}\t{words}")
        frames_in_all, tokens_in_all = frames_in_all + length, tokens_in_all + tokens + 1  # the end is a token
    listed = enumerate(rows * max(1, math.ceil(frames / frames_in_all)))
    lines = ["id\taudio\tn_frames\ttgt_text", *(f"u{number}\t{row}" for number, row in listed)]
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")
    return frames_in_all / FRAMES_PER_SECOND / 3600 / tokens_in_all


def train(arch: str, data: Path, options: argparse.Namespace) -> float:
    """Median of the logged target tokens per second."""
    words = ["train", str(data), "--task", "speech_to_text", "--arch", arch]
    words += [] if arch == STOCK else ["--user-dir", plugin.user_dir(), *shlex.split(options.options)]
    words += ["--criterion", "label_smoothed_cross_entropy_with_ctc", "--label-smoothing", "0.1", "--ctc-weight", "0.3"]
    words += ["--optimizer", "adam", "--lr", "1e-4", "--clip-norm", "1"]
    words += ["--dropout", "0.1", "--attention-dropout", "0.1", "--activation-dropout", "0.1"]
    words += ["--max-tokens", str(options.max_tokens), "--max-update", str(options.updates), "--num-workers", "4"]
    words += ["--disable-validation", "--no-save", "--log-format", "json", "--log-interval", str(INTERVAL)]
    words += [*(SMALL if options.small else []), *options.device_flags]
    return statistics.median(float(line["wps"]) for line in logged(run(words)))


def main(words: list[str]) -> int:
    options = parse_options(words)
    with tempfile.TemporaryDirectory() as folder:
        frames = options.updates * options.max_tokens
        hours = write_data(Path(folder) / "data", options.utterances, tuple(options.seconds), frames)
        speeds = {}
        for arch in (STOCK, *options.archs):
            speeds[arch] = hours * train(arch, Path(folder) / "data", options)
            print(f"{arch}: {speeds[arch]:.4f} hours/s", file=sys.stderr, flush=True)
    print(f"`{shlex.join(['python', '-m', 'benchmarks.speech', *words])}`\n")
    print(f"{machine(options.device)}; {versions()}\n")
    print("| | hours of audio per second | of stock's |\n|---|---|---|")
    for arch, speed in speeds.items():
        print(f"| `{arch}` | {speed:.4f} | {speed / speeds[STOCK]:.2f} |")
    return 0


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="speech.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--archs", nargs="+", default=["s2t_magneto"], metavar="ARCH", help=f"next to {STOCK} (s2t_magneto)")
    add("--options", default="", help="of fairseq-train, for this package's models alone, such as --compile")
    add("--device", choices=("cpu", "cuda"), default="cuda", help="(cuda)")
    add("--utterances", type=positive, default=1500, help="with features of their own (1500)")
    add("--seconds", type=float, nargs=2, default=[2.0, 20.0], help="shortest and longest utterance (2 20)")
    add("--max-tokens", type=positive, default=80000, help="frames of a batch (80000)")
    add("--updates", type=positive, default=300, help="of each training (300)")
    add("--small", action="store_true", help="1 + 1 layers of width 32")
    options = parser.parse_args(words)
    if options.updates < 2 * INTERVAL:
        parser.error(
            f"--updates ({options.updates}) must be at least {2 * INTERVAL}: the first {INTERVAL} do not count"
        )
    options.device_flags = ["--cpu"] if options.device == "cpu" else ["--fp16"]
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
