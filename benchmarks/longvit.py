"""LongViT's cost over the size of an image: inference and a training step of the released small model.

    python -m benchmarks.longvit --sizes 1024 2048 4096                # on a CPU, in float32
    python -m benchmarks.longvit --device cuda --output longvit.md     # 1,024 to 16,384 pixels in bfloat16

Patches of 32 pixels, 12 layers of width 384, the released segments of each size; every layer is recomputed in the
backward pass and its feed-forward network goes in chunks. For comparison, up to --dense-up-to, the model with dense
attention by torch's fused kernel. On a CPU each figure is from a process of its own.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare import positive
from benchmarks.measure import if_it_fits, in_fresh_process, peak_resident_bytes, time_in_turns
from benchmarks.report import DENSE, OURS, Row, document
from torchscale_fairseq import LongViTClassifier, LongViTConfig

INFERENCE, TRAINING = "inference", "training step"
CLASSES = 2


@dataclass(frozen=True)
class Case:
    """One image of one side."""

    size: int
    side: str
    work: str
    device: str
    chunk_size: int

    @property
    def patches(self) -> int:
        return (self.size // LongViTConfig().patch_size) ** 2

    @property
    def title(self) -> str:
        return f"{self.work}, {self.size:,} pixels ({self.patches:,} patches)"


def measure(case: Case, threads: int, repeats: int) -> tuple[float, int]:
    """Seconds, the median of the repetitions, and bytes at the peak, image and weights included."""
    torch.set_num_threads(threads)
    on_gpu = case.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    torch.manual_seed(1)
    dense: dict[str, Any] = {} if case.side == OURS else {"segment_length": [case.patches], "dilated_ratio": [1]}
    config = LongViTConfig(
        img_size=case.size, checkpoint_activations=case.work == TRAINING, ffn_chunk_size=case.chunk_size, **dense
    )
    model = LongViTClassifier(config, CLASSES).to(case.device, dtype).train(case.work == TRAINING)
    image = torch.randn(1, config.in_chans, case.size, case.size, device=case.device, dtype=dtype)
    step = partial(training_step if case.work == TRAINING else inference, model, image)
    seconds = time_in_turns({case.side: step}, warmups=1 if on_gpu else 0, repeats=repeats)[case.side]
    return seconds, torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes()


@torch.no_grad()
def inference(model: LongViTClassifier, image: torch.Tensor) -> None:
    model(image)


def training_step(model: LongViTClassifier, image: torch.Tensor) -> None:
    """Forward and backward; no optimizer."""
    model.zero_grad()
    model(image).logsumexp(1).sum().backward()


def row_of(case: Case, options: argparse.Namespace) -> Row:
    """Without a time if the GPU's memory does not suffice."""
    arguments = case, options.threads, options.repeats
    found = in_fresh_process(measure, *arguments) if case.device == "cpu" else if_it_fits(measure, *arguments)
    seconds, memory = found or (None, None)
    return Row(case.title, case.side, seconds, memory, case.patches, "patches", problem="out of memory")


def per_patch(rows: list[Row]) -> list[str]:
    """How the cost of a patch changes with the size, and how dense attention compares."""
    notes = []
    for work in (INFERENCE, TRAINING):
        own = {row.items: row for row in rows if row.benchmark.startswith(work) and row.side == OURS and row.seconds}
        listed = [f"{1e6 * row.seconds / items:.3g} at {items:,}" for items, row in own.items() if row.seconds]
        if listed:
            notes.append(f"{work}, microseconds per patch: {', '.join(listed)}.")
        for row in rows:
            beside = own.get(row.items)
            if row.benchmark.startswith(work) and row.side == DENSE and row.seconds and beside and beside.seconds:
                times = row.seconds / beside.seconds
                notes.append(f"{work}, {row.items:,} patches: {times:.2f} times as fast as with dense attention.")
    return notes


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    options = parse_options(words)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what a process frees is then no longer resident
    rows = []
    for size in options.sizes:
        for work in (INFERENCE, TRAINING):
            for side in (OURS, DENSE) if size <= options.dense_up_to else (OURS,):
                rows.append(row_of(Case(size, side, work, options.device, options.ffn_chunk_size), options))
                print(f"longvit.py: {rows[-1].benchmark}, {side}: {rows[-1].seconds} s", file=sys.stderr)
    torch.set_num_threads(options.threads)
    text = document(rows, per_patch(rows), words, options.device, module="longvit")
    print(text, end="")
    if options.output:
        options.output.write_text(text)
    return 0


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="longvit.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    sizes = [1024, 2048, 4096, 8192, 16384]
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    add("--sizes", type=positive, nargs="+", default=sizes, metavar="N", help="pixels; default: 1024 to 16384")
    add("--dense-up-to", type=positive, default=4096, metavar="N", help="pixels; default: 4096")
    add("--repeats", type=positive, default=3, help="timed repetitions, of which the median counts; default: 3")
    add("--threads", type=positive, default=os.cpu_count(), help="torch's threads; default: all cores")
    add("--ffn-chunk-size", type=positive, default=8192, metavar="N", help="patches; default: 8192")
    add("--output", type=Path, metavar="FILE.md", help="also write what is printed")
    options = parser.parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch sees")
    return options


if __name__ == "__main__":
    sys.exit(main())
