"""fairseq-train and a plain, compiled training loop in PyTorch: tokens per second of whole updates, in one run.

    python -m benchmarks.throughput                                 # the four sizes of docs/performance.md, on a GPU
    python -m benchmarks.throughput --cases base:16x1024 --profile  # and where the time of five updates goes
    python -m benchmarks.throughput --cases base:16x1024,fp16 base:16x1024,bert_magneto,dropout=0.1
    python -m benchmarks.throughput --cases xl:8x2048 xl:8x2048,gpus=2 --ours-alone --updates 60 --interval 20
    python -m benchmarks.throughput --cases small:2x32 --device cpu --vocab-size 1000 --updates 150

Each case is a size of --family and a batch, sequences x tokens, with variants after it (see throughput_cases.py).
Our side is the command line as anyone types it, on data that this script writes: loading, logging every 50 updates
(--interval), clipping and the optimizer are in. The speed is the median of what it logs, without the first figure. The
other side is benchmarks/plain_loop.py, the same model on the same batch, in cases that it can train. bert_magneto is
trained on samples that text fills.
"""

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.compare import positive
from benchmarks.decoders import Size, flops_per_step
from benchmarks.measure import watched_memory
from benchmarks.report import machine, versions
from benchmarks.throughput_cases import FAMILIES, PRECISIONS, SIZES, Case
from torchscale_fairseq import plugin

HERE = Path(__file__).resolve().parent
CASES = ("base:16x1024", "base:64x1024", "medium:32x1024", "xl:8x2048")
TRAIN_OPTIONS = ["--optimizer", "adam"]
PEAK = 989e12
"""FLOP/s that shares are relative to: an H100's or H200's in bfloat16, dense."""
INTERVAL = 50
HEADER = (
    "| model, tokens per update | fairseq-train, tokens/s | of peak | memory | plain loop | of peak | memory | ratio |"
)


@dataclass(frozen=True)
class Measured:
    """One side of a case."""

    tokens_per_second: float
    memory: float
    """Peak bytes of the GPU in use, libraries and unused reserves included; 0 if unknown."""


def write_data(folder: Path, tokens: int, vocab_size: int) -> None:
    """Random text with this number of tokens, binarised as fairseq-preprocess would, with its dictionary."""
    from fairseq.data.dictionary import Dictionary
    from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder

    dictionary = Dictionary()
    for index in range(vocab_size - len(dictionary)):
        dictionary.add_symbol(f"w{index}")
    dictionary.save(str(folder / "dict.txt"))
    builder = MMapIndexedDatasetBuilder(str(folder / "train.bin"), dtype=np.uint16 if vocab_size < 65_500 else np.int32)
    generator = torch.Generator().manual_seed(1)
    for sentence in torch.randint(dictionary.nspecial, vocab_size, (tokens,), generator=generator).split(1000):
        builder.add_item(sentence)
    builder.finalize(str(folder / "train.idx"))


def train_words(case: Case, data: Path, options: argparse.Namespace, interval: int = INTERVAL) -> list[str]:
    """The arguments of fairseq-train, which logs every ``interval`` updates."""
    words = [str(data), "--user-dir", plugin.user_dir(), *case.words(options)]
    words += ["--max-update", str(options.updates), "--lr", "1e-4", "--clip-norm", "1", "--no-save"]
    words += ["--disable-validation", "--log-format", "json", "--log-interval", str(interval)]
    words += ["--cpu"] if options.device == "cpu" else [] if case.eager else ["--compile"]
    return [*words, *options.train_options]


def measure_ours(words: list[str], log: Path) -> Measured:
    """Run fairseq-train, and read its log.

    Raises:
        SystemExit: it failed.
    """
    with watched_memory() as used, log.open("w") as output:
        command = [sys.executable, "-m", "fairseq_cli.train", *words]
        run = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    text = log.read_text()
    lines = logged(text)
    if run.returncode or not lines:
        raise SystemExit(f"throughput.py: fairseq-train {shlex.join(words)} failed:\n{text[-3000:]}")
    return Measured(statistics.median(float(line["wps"]) for line in lines), max(used, default=0))


def logged(text: str) -> list[dict[str, str]]:
    """The figures that fairseq-train logs (--log-format json), without the first."""
    return [json.loads(line) for line in re.findall(r"\| train_inner \| (\{.*\})", text)][1:]


def measure_plain(case: Case, options: argparse.Namespace) -> Measured:
    """Run benchmarks/plain_loop.py.

    Raises:
        SystemExit: it failed.
    """
    sizes = map(str, (*SIZES[case.size], case.sequences, case.length))
    words = [*sizes, "--vocab-size", str(options.vocab_size), "--device", options.device]
    words += [] if (case.family or options.family) == "gpt_magneto" else ["--pre-norm"]
    with watched_memory() as used:
        run = subprocess.run([sys.executable, str(HERE / "plain_loop.py"), *words], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"throughput.py: plain_loop.py {shlex.join(words)} failed:\n{run.stderr[-3000:]}")
    found = json.loads(run.stdout)
    return Measured(case.tokens / found["seconds"], max(used, default=0))


def row(case: Case, ours: Measured, plain: Measured | None, vocab_size: int) -> str:
    """A line of the table."""
    layers, width, heads = SIZES[case.size]
    size = Size(layers, width, heads, 4 * width, vocab_size, case.tokens)
    flops = flops_per_step(size, case.sequences, case.length) / case.tokens
    cells = [case.title]
    for side in (ours, plain):
        if side is None:
            cells += ["", "", ""]
            continue
        rate = side.tokens_per_second
        memory = f"{side.memory / 2**30:.1f} GiB" if side.memory else ""
        share = "" if not case.has_known_flops else f"{flops * rate / PEAK / case.gpus:.1%}"
        cells += [f"{rate:,.0f}", share, memory]
    cells.append(f"{ours.tokens_per_second / plain.tokens_per_second:.3f}" if plain else "")
    return f"| {' | '.join(cells)} |"


def main(words: list[str]) -> int:
    options = parse_options(words)
    rows = []
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *sys.path[1:]])
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder)
            write_data(data, case.text_of_update * (options.updates + 1), options.vocab_size)
            train = train_words(case, data, options, options.interval)
            print(f"throughput.py: fairseq-train {shlex.join(train)}", file=sys.stderr, flush=True)
            ours = measure_ours(train, options.logs / f"{case.name}.log")
            if options.profile:
                launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.gpus)]
                profile = [*(launcher if case.gpus > 1 else []), str(HERE / "training_profile.py"), "--", *train]
                subprocess.run([sys.executable, *profile], check=True)
        plain = measure_plain(case, options) if case.is_plain and not options.ours_alone else None
        rows.append(row(case, ours, plain, options.vocab_size))
        print(rows[-1], file=sys.stderr, flush=True)
    print(f"`{shlex.join(['python', '-m', 'benchmarks.throughput', *words])}`\n")
    print(f"{machine(options.device)}; {versions()}\n")
    print("\n".join([HEADER, "|---" * (HEADER.count("|") - 1) + "|", *rows]))
    return 0


def training_parser(prog: str, description: str | None, *, updates: int) -> argparse.ArgumentParser:
    """Options of benchmarks that run fairseq-train, which does this number of updates by default."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--family", choices=FAMILIES, default="gpt_magneto", help="of cases that name none (gpt_magneto)")
    add("--device", choices=("cpu", "cuda"), default="cuda", help="(cuda)")
    add("--precision", choices=PRECISIONS, help="of cases that name none (bf16; CPU: float32)")
    add("--dropout", type=float, default=0.0, help="of ours, of cases that name none (0)")
    add("--updates", type=positive, default=updates, help=f"of fairseq-train ({updates})")
    add("--vocab-size", type=positive, default=50_000, help="(50,000)")
    add("train_options", nargs="*", metavar="-- OPTIONS", help=f"of fairseq-train ({shlex.join(TRAIN_OPTIONS)})")
    return parser


def finished(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Options of a ``training_parser``, with the defaults that depend on others."""
    options = parser.parse_args(words)
    options.precision = options.precision or ("bf16" if options.device == "cuda" else "float32")
    options.train_options = options.train_options or TRAIN_OPTIONS
    return options


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = training_parser("throughput.py", __doc__, updates=200)
    add = parser.add_argument
    add("--cases", type=Case.of, nargs="+", default=[Case.of(c) for c in CASES], help=f"({' '.join(CASES)})")
    add("--ours-alone", action="store_true", help="leave out the plain loop")
    add("--profile", action="store_true", help="also print where the time of five updates goes")
    add("--interval", type=positive, default=INTERVAL, help=f"updates between the figures that are logged ({INTERVAL})")
    add("--logs", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR", help="for the logs of fairseq-train")
    options = finished(parser, words)
    first = options.interval
    if options.updates < 2 * first:
        parser.error(f"--updates ({options.updates}) must be at least {2 * first}: the first {first} do not count")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
