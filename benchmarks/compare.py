"""Our models and official TorchScale 0.3.0 and stock fairseq: measured in one run, printed as one table.

    pip install --no-deps torchscale==0.3.0
    python -m benchmarks.compare                        # a decoder's training step, and translation
    python -m benchmarks.compare train --device cuda    # 125M, 350M and 1.3B parameters in bfloat16
    python -m benchmarks.compare experts                # a layer with experts; the official one takes 20 GB

What should compute the same is compared first: logits and gradients, or hypotheses and scores. Where they disagree
nothing is timed, and the exit status is 1.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.decoders import SIZES, Case, Size
from benchmarks.experts import ExpertCase, compare_counts, compare_experts, prepare_official_experts
from benchmarks.measure import matmul_rate
from benchmarks.official import OfficialMissingError, load_official
from benchmarks.report import COMPILED, DENSE, OFFICIAL, OURS, STOCK, DisagreementError, Row, document
from benchmarks.training import compare_training


@dataclass
class Results:
    """What is known so far."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    disagreements: int = 0

    def add(self, title: str, sides: list[str], compare: Callable[[], tuple[list[Row], list[str]]]) -> None:
        """Run one comparison, or note that its sides disagree."""
        print(f"compare.py: {title} ...", file=sys.stderr)
        try:
            rows, notes = compare()
        except DisagreementError as error:
            print(f"compare.py: {error}", file=sys.stderr)
            rows, notes = [Row(title, side, problem="not timed: disagreement") for side in sides], [str(error)]
            self.disagreements += 1
        self.rows += rows
        self.notes += notes


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    options = parse_options(words)
    torch.set_num_threads(options.threads)
    try:
        if OFFICIAL in options.sides:
            load_official(options.torchscale)
    except OfficialMissingError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    results = Results()
    if options.benchmark in ("train", "both"):
        train(options, results)
    if options.benchmark in ("generate", "both"):
        generate(options, results)
    if options.benchmark == "experts":
        experts(options, results)
    text = document(results.rows, results.notes, words, options.device)
    print(text, end="")
    if options.output:
        options.output.write_text(text)
    return 1 if results.disagreements else 0


def train(options: argparse.Namespace, results: Results) -> None:
    """The training steps, one comparison per size and length."""
    sides = [side for side in options.sides if side != STOCK] + [COMPILED] * options.compile
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    rate = matmul_rate(options.device, dtype)
    results.notes.append(
        f"Peak memory holds weights, gradients and activations. Utilisation is relative to {rate / 1e12:.3g} TFLOP/s, "
        f"a large matrix product in {str(dtype).removeprefix('torch.')} in this run."
    )
    cases = [
        Case(name, resized(SIZES[name], options), length, options.device, dtype, options.seed)
        for name in options.sizes
        for length in options.lengths
    ]
    for case in cases:
        work = partial(
            compare_training, case, sides, repeats=options.repeats, matmul_rate=rate, torchscale=options.torchscale
        )
        results.add(case.title, sides, work)


def generate(options: argparse.Namespace, results: Results) -> None:
    """Translation, one comparison."""
    from benchmarks.generation import Sentences, compare_generation  # imports fairseq, which takes seconds

    sentences = Sentences(
        resized(SIZES["base"], options),
        batch=options.sentences,
        source_length=options.source_length,
        target_length=options.target_length,
        beam=options.beam,
        device=options.device,
        seed=options.seed,
    )
    work = partial(compare_generation, sentences, options.sides, repeats=options.repeats)
    results.add(sentences.title, options.sides, work)


def experts(options: argparse.Namespace, results: Results) -> None:
    """A layer with experts, the official one, layers with more and fewer experts, and a dense network."""
    prepare_official_experts()
    sides = [side for side in options.sides if side != STOCK]
    for tokens in options.tokens:
        case = ExpertCase(tokens, experts=32)
        add_experts(case, [*sides, DENSE], options, results)
    tokens = max(options.tokens)
    work = partial(compare_counts, [ExpertCase(tokens, experts) for experts in (8, 32, 128)], repeats=options.repeats)
    results.add(f"top-2, {tokens} tokens", [OURS], work)


def add_experts(case: ExpertCase, sides: list[str], options: argparse.Namespace, results: Results) -> None:
    work = partial(compare_experts, case, sides, repeats=options.repeats, torchscale=options.torchscale)
    results.add(case.title, sides, work)


def resized(size: Size, options: argparse.Namespace) -> Size:
    """The size with what the command line changes in it."""
    given = {f.name: getattr(options, f.name) for f in fields(Size)}
    return replace(size, **{name: value for name, value in given.items() if value is not None})


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("benchmark", nargs="?", choices=["train", "generate", "both", "experts"], default="both", help="default: both")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="cpu: float32; cuda: bfloat16, generation float32")
    add("--sides", nargs="+", choices=[OFFICIAL, OURS, STOCK], default=[OFFICIAL, OURS, STOCK], help="default: all")
    add("--torchscale", type=Path, metavar="PATH", help="torchscale's wheel or unpacked wheel; default: the installed")
    add("--output", type=Path, metavar="FILE.md", help="also write what is printed")
    add("--repeats", type=positive, default=5, help="timed repetitions, of which the median counts; default: 5")
    add("--threads", type=positive, default=os.cpu_count(), help="torch's threads; default: all cores")
    add("--seed", type=int, default=1, help="of weights and tokens")

    size = parser.add_argument_group("model sizes")
    size.add_argument("--sizes", nargs="+", choices=list(SIZES), help="default: base on a CPU, the others on a GPU")
    for name, meaning in {
        "layers": "layers (of each side, in translation)",
        "width": "width",
        "heads": "attention heads",
        "ffn-width": "inner width of the feed-forward networks",
        "vocab-size": "vocabulary; by default 8,000 for base and 50,000 for the others",
    }.items():
        size.add_argument(f"--{name}", type=positive, metavar="N", help=f"{meaning}, in place of the size's own")

    training = parser.add_argument_group("train")
    training.add_argument(
        "--lengths", type=positive, nargs="+", metavar="N", help="tokens; default: 512 2048, on a GPU also 8192"
    )
    training.add_argument(
        "--tokens-per-step", type=positive, metavar="N", help="batch = tokens per step // length; default by size"
    )
    training.add_argument("--compile", action="store_true", help="add our model with its option compile=True")

    translation = parser.add_argument_group("generate (size base)")
    translation.add_argument("--sentences", type=positive, default=8, metavar="N", help="in a batch; default: 8")
    translation.add_argument("--source-length", type=positive, default=64, metavar="N", help="tokens; default: 64")
    translation.add_argument(
        "--target-length", type=positive, default=64, metavar="N", help="tokens that all sides must decode; default: 64"
    )
    translation.add_argument("--beam", type=positive, default=5, metavar="N", help="default: 5")

    mixture = parser.add_argument_group("experts (CPU)")
    mixture.add_argument(
        "--tokens", type=positive, nargs="+", default=[4096, 16384], metavar="N", help="default: 4096 16384"
    )

    options = parser.parse_args(words)
    on_gpu = options.device == "cuda"
    options.sizes = options.sizes or (["125M", "350M", "1.3B"] if on_gpu else ["base"])
    options.lengths = options.lengths or ([512, 2048, 8192] if on_gpu else [512, 2048])
    if on_gpu and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    if options.sides == [STOCK] and options.benchmark != "generate":
        parser.error(f"--sides {STOCK} is for generate alone; add {OURS} or {OFFICIAL}")
    if options.compile and options.benchmark == "generate":
        parser.error("--compile is for train")
    return options


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


if __name__ == "__main__":
    sys.exit(main())
