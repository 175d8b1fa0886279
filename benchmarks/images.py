"""fairseq-train of a ViT next to a plain, compiled loop over timm's ViT of its size: images per second of whole
updates; and images per second that the data loader reads from JPEG files, in one run.

    python -m benchmarks.images                                        # ViT-Base, batches of 128, on a GPU
    python -m benchmarks.images --families vit                         # only the one that is built as timm's is
    python -m benchmarks.images --parts loader                         # without training, which compiles for minutes
    python -m benchmarks.images --device cpu --size tiny --img-size 32 --batch 4 --updates 100 --workers 1

Training reads small files of --img-size pixels, which cost the loader as little as files can. "Fixed batch" is the same
command by benchmarks/fixed_batch.py: one batch stays on the GPU, as in the loop over timm's. The speed is the median of
the logged ones, without the first 50 updates. The family vit is built as timm's is; vit_magneto has SubLN's norms as
well. The loader alone reads files of 500 x 375 pixels and about 85 KB, with random crops of 8 to 100 % of the area and
flips. All figures so far go to stderr after each.
"""

import argparse
import json
import logging
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from benchmarks.compare import positive
from benchmarks.image_data import texture, write_images
from benchmarks.measure import in_fresh_process
from benchmarks.report import machine, versions
from benchmarks.throughput import INTERVAL, PEAK, logged
from benchmarks.translation import run
from torchscale_fairseq import plugin

PARTS = TRAINING, LOADER = "training", "loader"
PATCH = 16
CLASSES = 1000
LAYERS = 12
WIDTHS = {"tiny": 192, "small": 384, "base": 768}
PHOTOGRAPH = (500, 375)
FILES = 64
"""With pixels of their own; the system keeps them in memory, and decoding costs the same again."""


def flops_per_image(width: int, img_size: int) -> float:
    """Of a training update, which takes three times the forward pass, without norms and the like: per layer and token
    24 width^2 for the matrix products, and 4 tokens width for the scores and their sums; then patches and head.

    Args:
        width: of the model, whose feed-forward networks are four times as wide.
        img_size: pixels of a side.
    """
    patches = (img_size // PATCH) ** 2
    tokens = patches + 1
    layers = LAYERS * tokens * (24 * width**2 + 4 * tokens * width)
    return 3.0 * (layers + 2 * patches * 3 * PATCH**2 * width + 2 * width * CLASSES)


def train_words(arch: str, data: Path, options: argparse.Namespace) -> list[str]:
    """The arguments of fairseq-train."""
    words = [str(data), "--user-dir", plugin.user_dir(), "--task", "image_classification", "--arch", arch]
    words += ["--img-size", str(options.img_size), "--patch-size", str(PATCH), "--criterion", "image_classification"]
    words += ["--batch-size", str(options.batch), "--num-workers", str(options.workers), "--optimizer", "adam"]
    words += ["--lr", "1e-4", "--weight-decay", "0.01", "--clip-norm", "1", "--max-update", str(options.updates)]
    words += ["--disable-validation", "--no-save", "--log-format", "json", "--log-interval", str(INTERVAL)]
    return [*words, *(["--cpu"] if options.device == "cpu" else ["--bf16", "--compile"])]


def trained_speed(words: list[str], options: argparse.Namespace) -> float:
    """Images per second that fairseq-train logs; it counts patches."""
    patches = (options.img_size // PATCH) ** 2
    return statistics.median(float(line["wps"]) for line in logged(run(["train", *words]))) / patches


def timed_speed(module: str, words: list[str], batch: int) -> float:
    """Images per second of a benchmark that prints the seconds of an update; its errors go to stderr as they come.

    Raises:
        SystemExit: it failed.
    """
    program = [sys.executable, "-m", f"benchmarks.{module}", *words]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"images.py: {module} {shlex.join(words)} failed:\n{done.stdout[-3000:]}")
    return batch / float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def loader_speed(words: list[str], batch: int, workers: int) -> float:
    """Images per second of the training iterator, once its workers have started.

    Args:
        words: of fairseq-train.
        batch: images at a time.
        workers: processes that read.
    """
    from fairseq import options as parsers
    from fairseq import tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    from torchscale_fairseq.hooks.runs.launch import forget_inherited_start_method

    logging.disable(logging.INFO)
    plugin.register()
    forget_inherited_start_method()  # else the workers would start as those of no training do
    cfg = convert_namespace_to_omegaconf(parsers.parse_args_and_arch(parsers.get_training_parser(), words))
    task = tasks.setup_task(cfg.task)
    task.load_dataset("train")
    batches = task.get_batch_iterator(task.dataset("train"), max_sentences=batch, num_workers=workers, seed=1)
    reading = iter(batches.next_epoch_itr())
    for _ in range(2 * workers):
        next(reading)
    start = time.perf_counter()
    read = sum(sample["nsentences"] for sample in reading)
    return read / (time.perf_counter() - start)


def measure_loader(data: Path, options: argparse.Namespace) -> float:
    """Write JPEG files as large as photographs, and read them as ``loader_speed`` does."""
    files = (texture(seed, *PHOTOGRAPH) for seed in range(FILES))
    write_images(data, files, 10 * options.workers * options.batch, CLASSES)
    words = train_words(f"vit_{options.size}", data, options)
    words += ["--min-crop", "0.08", "--crop-aspect", "1.333", "--horizontal-flip"]
    return float(in_fresh_process(loader_speed, words, options.batch, options.workers))


def measure_training(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Images per second of whole updates, by the side that makes them."""
    side = options.img_size
    files = (texture(seed, side, side, finest=4, quality=75) for seed in range(FILES))
    write_images(folder / "small", files, options.updates * options.batch, CLASSES)
    if not options.ours_alone:
        words = [f"vit_{options.size}_patch16_224", str(side), str(options.batch), "--device", options.device]
        yield options.timm, timed_speed("timm_loop", words, options.batch)
    for family in options.families:
        arch = f"{family}_{options.size}"
        words = train_words(arch, folder / "small", options)
        yield f"fairseq-train, {arch}", trained_speed(words, options)
        yield f"fixed batch, {arch}", timed_speed("fixed_batch", ["--", *words], options.batch)


def measure(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Images per second by what is measured, one after the other."""
    if TRAINING in options.parts:
        yield from measure_training(folder, options)
    if LOADER in options.parts:
        yield f"loader, {options.workers} workers", measure_loader(folder / "photographs", options)


def row(name: str, speed: float, options: argparse.Namespace, against: float | None) -> str:
    """A line of the table; the loader computes nothing that has a peak."""
    share = flops_per_image(WIDTHS[options.size], options.img_size) * speed / PEAK
    cells = [name, f"{speed:,.0f}", "" if name.startswith("loader") else f"{share:.1%}"]
    return f"| {' | '.join([*cells, '' if against is None else f'{speed / against:.3f}'])} |"


def so_far(speeds: dict[str, float], timm: str) -> str:
    """All figures in one line, so that the last line of a run that was cut off has what it measured."""
    against = speeds.get(timm)
    of_timm = lambda speed: "" if against is None else f" ({speed / against:.3f} of timm's)"  # noqa: E731
    return "; ".join(f"{name}: {speed:,.0f} images/s{of_timm(speed)}" for name, speed in speeds.items())


def main(words: list[str]) -> int:
    options = parse_options(words)
    memory = Path("/dev/shm")
    speeds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        for name, speed in measure(Path(folder), options):
            speeds[name] = speed
            print(f"images.py: {so_far(speeds, options.timm)}", file=sys.stderr, flush=True)
    print(f"`{shlex.join(['python', '-m', 'benchmarks.images', *words])}`\n")
    timm = f", timm {version('timm')}" if options.timm in speeds else ""
    print(f"{machine(options.device)}; {versions()}{timm}\n")
    print(f"| | images/s | of {PEAK / 1e12:.0f} TFLOP/s | of timm's |\n|---|---|---|---|")
    for name, speed in speeds.items():
        print(row(name, speed, options, speeds.get(options.timm)))
    return 0


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="images.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help=f"what to measure ({' '.join(PARTS)})")
    add("--families", nargs="+", default=["vit", "vit_magneto"], metavar="FAMILY", help="of --size (vit vit_magneto)")
    add("--size", choices=WIDTHS, default="base", help="of the models (base)")
    add("--img-size", type=positive, default=224, help="pixels of a side (224)")
    add("--batch", type=positive, default=128, help="images of an update (128)")
    add("--updates", type=positive, default=150, help="of fairseq-train (150)")
    add("--workers", type=positive, default=16, help="processes that read images (16)")
    add("--device", choices=("cpu", "cuda"), default="cuda", help="(cuda)")
    add("--ours-alone", action="store_true", help="without timm")
    options = parser.parse_args(words)
    if options.updates < 2 * INTERVAL:
        parser.error(
            f"--updates ({options.updates}) must be at least {2 * INTERVAL}: the first {INTERVAL} do not count"
        )
    options.timm = f"plain loop, timm's vit_{options.size}_patch16_224"
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
