"""Inference and a training step of models of one large input: what benchmarks.longvit and benchmarks.slides share."""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compare import positive
from benchmarks.measure import if_it_fits, in_fresh_process, peak_resident_bytes, time_in_turns
from benchmarks.report import OURS, Row, document

INFERENCE, TRAINING = "inference", "training step"


def cost(
    build: Callable[[torch.dtype], tuple[nn.Module, list[Tensor]]], work: str, device: str, threads: int, repeats: int
) -> tuple[float, int]:
    """Seconds, the median of the repetitions, and bytes at the peak, inputs and weights included.

    Args:
        build: makes the model and its inputs, on the device and with floats of a dtype.
        work: INFERENCE or TRAINING.
        device: cpu, in float32, or cuda, in bfloat16.
        threads: torch's threads.
        repeats: timed repetitions.
    """
    torch.set_num_threads(threads)
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(1)
    model, inputs = build(torch.bfloat16 if on_gpu else torch.float32)
    step = partial(training_step if work == TRAINING else inference, model.train(work == TRAINING), *inputs)
    seconds = time_in_turns({work: step}, warmups=1 if on_gpu else 0, repeats=repeats)[work]
    return seconds, torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes()


@torch.no_grad()
def inference(model: nn.Module, *inputs: Tensor) -> None:
    model(*inputs)


def training_step(model: nn.Module, *inputs: Tensor) -> None:
    """Forward and backward; no optimizer."""
    model.zero_grad()
    model(*inputs).logsumexp(1).sum().backward()


def found_if_it_fits(
    measure: Callable[..., tuple[float, int]], device: str, *arguments: Any
) -> tuple[float | None, int | None]:
    """What ``measure`` returns; Nones if the GPU's memory does not suffice. On a CPU it runs in a process of its own,
    whose largest resident size is then its own."""
    found = in_fresh_process(measure, *arguments) if device == "cpu" else if_it_fits(measure, *arguments)
    seconds, memory = found or (None, None)
    return seconds, memory


def per_item(rows: list[Row], work: str, item: str) -> list[str]:
    """How the cost of an item of ours changes with their number; empty if nothing was timed."""
    own = [row for row in rows if row.benchmark.startswith(work) and row.side == OURS and row.seconds]
    listed = [f"{1e6 * row.seconds / row.items:.3g} at {row.items:,}" for row in own if row.seconds]
    return [f"{work}, microseconds per {item}: {', '.join(listed)}."] if listed else []


def report(rows: list[Row], notes: list[str], words: list[str], options: argparse.Namespace, module: str) -> None:
    """Print the table and write it to --output."""
    torch.set_num_threads(options.threads)
    text = document(rows, notes, words, options.device, module=module)
    print(text, end="")
    if options.output:
        options.output.write_text(text)


def announce(module: str, row: Row) -> None:
    """Say on stderr that a measurement has ended."""
    print(f"{module}.py: {row.benchmark}, {row.side}: {row.seconds} s", file=sys.stderr, flush=True)


def give_back_freed_memory() -> None:
    """Let processes that start from here on no longer count as resident what they free."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"


def parse(parser: argparse.ArgumentParser, words: list[str], item: str) -> argparse.Namespace:
    """Parse the words with the options that both scripts have, after those that the parser has."""
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    add("--repeats", type=positive, default=3, help="timed repetitions, of which the median counts; default: 3")
    add("--threads", type=positive, default=os.cpu_count(), help="torch's threads; default: all cores")
    add("--ffn-chunk-size", type=positive, default=8192, metavar="N", help=f"{item}; default: 8192")
    add("--output", type=Path, metavar="FILE.md", help="also write what is printed")
    options = parser.parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch sees")
    return options


def parser_of(module: str, description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"{module}.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
