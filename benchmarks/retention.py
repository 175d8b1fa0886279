"""RetNet, official TorchScale 0.3.0's (its parallel form) and attention: measured in one run, one table.

    pip install --no-deps torchscale==0.3.0
    python -m benchmarks.retention                      # training steps of a layer, retention alone, decoding
    python -m benchmarks.retention train --lengths 4096 --figure cost.png
    python -m benchmarks.retention --device cuda        # a retention layer in bfloat16, and fla's own

The official side and ours have the same weights and inputs; outputs and gradients are compared first, at each length
(on a GPU at the shortest), and where they disagree nothing is timed and the exit status is 1. Official lengths above
--official-up-to are left out, since its memory grows with the square of the length.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import retention_steps
from benchmarks.compare import positive
from benchmarks.large_inputs import announce
from benchmarks.measure import in_fresh_process, peak_resident_bytes, resident_bytes, time_in_turns
from benchmarks.official import OfficialMissingError, load_official
from benchmarks.report import OFFICIAL, OURS, DisagreementError, Row, document
from benchmarks.retention_decoding import STEPS_PER_TURN, decoding
from benchmarks.retention_figure import draw
from benchmarks.retention_gpu import results_on_gpu
from benchmarks.retention_steps import ATTENTION, Case, Step, layer_step, retention_step

BENCHMARKS: dict[str, Callable[[Case, str], Step]] = {"layer": layer_step, "retention alone": retention_step}
SHORT = 128
"""Tokens of the step that a process takes before its memory is looked at, so that it then holds libraries, weights and
their gradients."""


def compare(name: str, case: Case, sides: list[str], options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Check that ours and the official side agree, then measure.

    Raises:
        DisagreementError: they differ; nothing was timed.
    """
    title = f"{name}, training step, 1 x {case.length:,}"
    make = BENCHMARKS[name]
    notes = []
    if OFFICIAL in sides:
        expected, found = (make(case, side)() for side in (OFFICIAL, OURS))
        worst, where = max((_difference(found[key], expected[key]), key) for key in expected)
        allowed = retention_steps.ALLOWED
        text = f"{title}: output and gradients differ by up to {worst:.1g} ({where}), allowed {allowed:.0e}"
        if not worst <= allowed:
            raise DisagreementError(f"ours and official disagree: {text}")
        notes.append(f"{text}.")
        del expected, found
    steps = {side: make(case, side) for side in sides}
    seconds = time_in_turns(steps, warmups=1, repeats=options.repeats)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what a process frees is then no longer resident
    memory = {side: in_fresh_process(step_memory, name, case, side, options.torchscale) for side in sides}
    rows = [Row(title, side, seconds[side], memory[side], items=case.length, unit="tokens") for side in sides]
    return rows, notes


def _difference(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def step_memory(name: str, case: Case, side: str, torchscale: Path | None) -> int:
    """Bytes by which two steps, input and tables included, make this process grow above what a short step leaves."""
    if side == OFFICIAL:
        load_official(torchscale)
    held = BENCHMARKS[name](replace(case, length=SHORT), side)
    held()
    before = resident_bytes()
    del held  # its weights and gradients, in whose place the next ones come
    step = BENCHMARKS[name](case, side)
    for _ in range(2):
        step()
    return peak_resident_bytes() - before


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    options = parse_options(words)
    torch.set_num_threads(options.threads)
    try:
        load_official(options.torchscale)
    except OfficialMissingError as error:
        print(f"retention.py: {error}", file=sys.stderr)
        return 2
    rows, notes, status = [], [], 0
    try:
        for found_rows, found_notes in results(options):
            rows += found_rows
            for found in found_rows:
                announce("retention", found)
            notes += found_notes
            if options.output:  # now, so that a run that is cut off leaves what it measured
                options.output.write_text(document(rows, notes, words, options.device, module="retention"))
    except DisagreementError as error:
        print(f"retention.py: {error}", file=sys.stderr)
        status = 1
    print(document(rows, notes, words, options.device, module="retention"), end="")
    if options.figure and rows:
        draw(rows, options.figure)
    return status


def results(options: argparse.Namespace) -> Iterator[tuple[list[Row], list[str]]]:
    """Rows and notes of each benchmark in turn."""
    if options.device == "cuda":
        yield from results_on_gpu(options)
        return
    case = Case(0, options.width, options.value_width, options.heads)
    if options.benchmark != "decode":
        for name in BENCHMARKS:
            for length in options.lengths:
                sides = [OFFICIAL] if length <= options.official_up_to else []
                sides += [OURS] + [ATTENTION] * (name == "layer")
                print(f"retention.py: {name}, {length} tokens ...", file=sys.stderr)
                yield compare(name, replace(case, length=length), sides, options)
    if options.benchmark != "train":
        print("retention.py: decoding ...", file=sys.stderr)
        yield decoding(case, options.prompts, options)


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="retention.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    number = partial(add, type=positive, metavar="N")
    add("benchmark", nargs="?", choices=["train", "decode", "both"], help="default: both; train with --device cuda")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    add("--torchscale", type=Path, metavar="PATH", help="torchscale's wheel or unpacked wheel; default: the installed")
    add("--output", type=Path, metavar="FILE.md", help="also write what is printed")
    add("--figure", type=Path, metavar="FILE.png", help="draw time and memory of the layer over the length")
    add("--repeats", type=positive, default=3, help="timed repetitions, of which the median counts; default: 3")
    add("--threads", type=positive, default=os.cpu_count(), help="torch's threads; default: all cores")
    number("--width", help="default: 512; 2048 with --device cuda, and so on")
    number("--value-width", help="of values, gate and feed-forward; default: 864; 3456")
    number("--heads", help="retention heads; default: 4; 8")
    number("--lengths", nargs="+", help="tokens; default: 1024 to 16384; 2048 to 65536")
    number("--official-up-to", help="tokens; default: 8192; 65536, if they fit")
    number("--layers", default=6, help="of the models that decode; default: 6")
    number("--sentences", default=16, help="decoded together; default: 16")
    number("--prompts", nargs="+", default=[2048], help="tokens read before; default: 2048")
    number("--new-tokens", default=512, help="decoded after them; default: 512")
    options = parser.parse_args(words)
    if options.new_tokens % STEPS_PER_TURN:
        parser.error(f"--new-tokens ({options.new_tokens}) must be a multiple of {STEPS_PER_TURN}")
    if options.device == "cuda" and options.benchmark not in (None, "train"):
        parser.error(f"{options.benchmark} is measured on a CPU; with --device cuda there is train")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch sees")
    if options.figure and importlib.util.find_spec("matplotlib") is None:
        parser.error("--figure needs matplotlib; pip install -r requirements/experiments.txt")
    for name, value in _DEFAULTS[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


_DEFAULTS = {
    "cpu": {
        "benchmark": "both",
        "width": 512,
        "value_width": 864,
        "heads": 4,
        "lengths": [1024, 4096, 8192, 16384],
        "official_up_to": 8192,
    },
    "cuda": {
        "benchmark": "train",
        "width": 2048,
        "value_width": 3456,
        "heads": 8,
        "lengths": [2048, 4096, 8192, 16384, 32768, 65536],
        "official_up_to": 65536,
    },
}


if __name__ == "__main__":
    sys.exit(main())
