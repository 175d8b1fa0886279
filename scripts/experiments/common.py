"""What the experiments share: text, training, processes side by side, the report and its figure.

Models read bytes of the English that torchscale-fairseq data python-corpus finds in the Python that runs it.
"""

import argparse
import importlib.util
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

import torchscale_fairseq
from scripts.experiments.kept_results import KeptResults
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.reporting import run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent.parent
VOCABULARY = 256
BEGINNING, MASK = 0, 2
"""Bytes that no text has, in special roles; neither has it the 1, which the models' embeddings keep for padding."""
UPDATES_PER_POINT = 10
"""Updates over which the reported training losses are averaged."""
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "grid.alpha": 0.3,
    "savefig.dpi": 150,
}
COLOURS = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "blue": "#0072B2",
    "red": "#D55E00",
    "purple": "#CC79A7",
}
"""Okabe and Ito's colours, which colour-blind readers tell apart."""

Run = Any
"""A dataclass instance: the settings of one model."""
Result = dict[str, Any]
"""What was measured, as JSON holds it."""
Loss = Callable[[Tensor, torch.Generator], Tensor]
"""From windows (batch, bytes), and a generator for what is random, to the mean loss in nats."""


@dataclass(frozen=True)
class Text:
    """Bytes to train on, and bytes of other documents."""

    train: bytes
    held_out: bytes


@dataclass(frozen=True)
class Training:
    """Adam with betas (0.9, 0.98), without weight decay or clipping; the rate rises and falls linearly."""

    learning_rate: float
    """The highest one."""
    updates: int
    warmup: int
    """Updates until the highest learning rate."""
    batch: int
    """Windows in an update."""
    length: int
    """Bytes in a window, of which a decoder predicts all but the first, or tokens of an example."""
    seed: int

    def rate(self, update: int) -> float:
        """Learning rate of an update, counted from 0."""
        rise = (update + 1) / (self.warmup + 1)
        fall = (self.updates - update) / (self.updates - self.warmup)
        return self.learning_rate * min(rise, fall)


@dataclass(frozen=True)
class Experiment:
    """What one script measures and draws."""

    name: str
    description: str
    runs: Callable[[bool, int], Sequence[Run]]
    """From whether small and the seed to the models to train, those that take longest first."""
    measure: Callable[[Run, Text, str], Result]
    """Trains one model on a device."""
    draw: Callable[[Result], "Figure"]
    """From a report."""
    reads_text: bool = True
    """Whether it needs the corpus; if not, ``measure`` is given an empty one."""


def main(experiment: Experiment) -> NoReturn:
    """Train or draw, as the command line says, and end the process with its exit code."""
    options = parse_options(experiment)
    if options.plot_only is None:
        run_command(partial(conduct, experiment, options))
    run_command(partial(plot, experiment.name, experiment.draw, options.plot_only))


def parse_options(experiment: Experiment) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=experiment.description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--output", type=Path, metavar="DIR", help="train, and write the report and its figure here")
    task.add_argument("--plot-only", type=Path, metavar="JSON", help="draw the figure of this report, into its folder")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    add("--small", action="store_true", help="smaller models and fewer of them: one to five minutes on a CPU")
    add("--processes", type=int, default=1, metavar="N", help="models trained at the same time; default: 1")
    add("--seed", type=int, default=1, help="of initial values and data; default: 1")
    if experiment.reads_text:
        add("--text", type=Path, default=ROOT / "data/python", metavar="DIR", help="the corpus, made if it is missing")
    return parser.parse_args()


def conduct(experiment: Experiment, options: argparse.Namespace) -> None:
    """Train all models, write the report and draw its figure."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda needs a GPU that torch sees; use --device cpu --small")
    if options.processes < 1:
        raise InputError(f"--processes ({options.processes}) must be at least 1")
    text = load_text(options.text) if experiment.reads_text else Text(b"", b"")
    runs = experiment.runs(options.small, options.seed)
    start = time.perf_counter()
    kept = KeptResults(options.output / f".{experiment.name}.runs.json", options.device)
    results = measure_all(experiment, runs, text, options, kept)
    report = {
        "experiment": experiment.name,
        "command": shlex.join(["python", "-m", f"scripts.experiments.{experiment.name}", *sys.argv[1:]]),
        "small": options.small,
        "machine": machine(options.device),
        "versions": versions(),
        "seconds": round(time.perf_counter() - start, 1),
        **({"text": describe(text)} if experiment.reads_text else {}),
        "runs": [asdict(run) | result for run, result in zip(runs, results, strict=True)],
    }
    path = options.output / f"{experiment.name}.json"
    options.output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, allow_nan=False, indent=1) + "\n")
    kept.remove()
    print(f"wrote {path} after {report['seconds']} s")
    if has_matplotlib():
        plot(experiment.name, experiment.draw, path)
    else:
        print(f"no figure: {NO_MATPLOTLIB}, then --plot-only {path}")


def measure_all(
    experiment: Experiment, runs: Sequence[Run], text: Text, options: argparse.Namespace, kept: KeptResults
) -> list[Result]:
    """Train the models that have no kept result, one after another or several at a time in processes of their own."""
    found = [kept.find(run) for run in runs]
    left = [run for run, result in zip(runs, found, strict=True) if result is None]
    if len(left) < len(runs):
        print(f"{len(runs) - len(left)} of {len(runs)} runs were measured before, as {kept.path} says", flush=True)
    trained = iter(train_all(experiment, left, text, options, kept))
    return [next(trained) if result is None else result for result in found]


def train_all(
    experiment: Experiment, runs: Sequence[Run], text: Text, options: argparse.Namespace, kept: KeptResults
) -> list[Result]:
    """Train models, and keep each result as soon as those before it are there."""
    measure = partial(measure_one, measure=experiment.measure, text=text, device=options.device)
    threads = max(1, torch.get_num_threads() // options.processes)
    trained = []
    with ExitStack() as stack:
        results: Iterable[Result] = map(measure, runs)
        if options.processes > 1:
            pool = get_context("spawn").Pool(options.processes, torch.set_num_threads, (threads,))
            results = stack.enter_context(pool).imap(measure, runs)
        for run, result in zip(runs, results, strict=True):
            kept.add(run, result)
            trained.append(result)
    return trained


def measure_one(run: Run, *, measure: Callable[[Run, Text, str], Result], text: Text, device: str) -> Result:
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    start = time.perf_counter()
    result = measure(run, text, device)
    result["seconds"] = round(time.perf_counter() - start, 1)
    print(run, {name: value for name, value in result.items() if not isinstance(value, list)}, flush=True)
    return result


def machine(device: str) -> str:
    """The GPU, if it was used, and the processor."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = f"{os.cpu_count()} cores of {names[0].partition(': ')[2] if names else platform.machine()}"
    return f"{torch.cuda.get_device_name()}, {cpu}" if device == "cuda" else cpu


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchscale_fairseq": torchscale_fairseq.__version__,
    }


# Text


def load_text(folder: Path) -> Text:
    """The corpus in a folder, written by torchscale-fairseq data python-corpus if the folder is missing."""
    if not folder.exists():
        words = [sys.executable, "-m", "torchscale_fairseq", "data", "python-corpus", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"no corpus: {done.stderr.strip()}")
    splits = {split: (folder / f"{split}.txt").read_bytes() for split in ("train", "valid", "test")}
    return Text(splits["train"], splits["valid"] + splits["test"])


def describe(text: Text) -> dict[str, float]:
    return {
        "train_bytes": len(text.train),
        "held_out_bytes": len(text.held_out),
        "unigram_entropy": unigram_entropy(text.train),
    }


def unigram_entropy(text: bytes) -> float:
    """Loss in nats of a model that knows how frequent each byte is, and nothing of what stands around it."""
    return -sum(count / len(text) * math.log(count / len(text)) for count in Counter(text).values())


def as_tensor(text: bytes, device: str) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)


def windows_at(text: Tensor, starts: Tensor, length: int) -> Tensor:
    """Windows of a text, (starts, length)."""
    return text[starts.to(text.device)[:, None] + torch.arange(length, device=text.device)].long()


def draw_windows(text: Tensor, count: int, length: int, generator: torch.Generator) -> Tensor:
    """Windows from places drawn at random, (count, length)."""
    return windows_at(text, torch.randint(len(text) - length + 1, (count,), generator=generator), length)


# Models and training


def side_options(sides: Sequence[str], residual: str, *, layers: int, width: int, heads: int) -> dict[str, Any]:
    """Options of a config: its sizes, and post-LN, pre-LN, SubLN or DeepNorm on its sides."""
    options: dict[str, Any] = {"vocab_size": VOCABULARY}
    for side in sides:
        options |= {
            f"{side}_layers": layers,
            f"{side}_embed_dim": width,
            f"{side}_ffn_embed_dim": 4 * width,
            f"{side}_attention_heads": heads,
        }
    if residual == "post-LN":
        return options | {"subln": False} | {f"{side}_normalize_before": False for side in sides}
    return options | {"pre-LN": {"subln": False}, "SubLN": {"subln": True}, "DeepNorm": {"deepnorm": True}}[residual]


def next_byte_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Of a decoder that predicts each byte, but for the first, from those before it."""
    logits, _ = model(windows[:, :-1])
    return cross_entropy(logits, windows[:, 1:])


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the targets, (batch, seq), that are not negative."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def train(model: nn.Module, loss: Loss, text: Tensor, training: Training) -> list[float | None]:
    """Train a model.

    Args:
        model: on the text's device.
        loss: of the model.
        text: (bytes,).
        training: how.

    Returns:
        The mean loss of every ten updates, None where it was not finite.
    """

    def of_update(generator: torch.Generator) -> Tensor:
        return loss(draw_windows(text, training.batch, training.length, generator), generator)

    points = torch.stack(list(updates(model, of_update, training))).split(UPDATES_PER_POINT)
    return [finite(float(point.mean())) for point in points]


def updates(model: nn.Module, loss: Callable[[torch.Generator], Tensor], training: Training) -> Iterator[Tensor]:
    """Train a model; what comes out is the loss of each update, after it, so that a caller may look in between, or
    stop.

    Args:
        model: whose parameters change.
        loss: of a batch that it draws.
        training: how.
    """
    generator = torch.Generator().manual_seed(training.seed)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    for update in range(training.updates):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = training.rate(update)
        value = loss(generator)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        yield value.detach()


@torch.no_grad()
def held_out_loss(
    model: nn.Module, loss: Loss, text: Tensor, *, length: int, batches: int = 16, batch: int = 64
) -> float | None:
    """Mean loss in evaluation mode on windows that are the same for every model, None if it is not finite."""
    generator = torch.Generator().manual_seed(0)
    model.eval()
    values = [loss(draw_windows(text, batch, length, generator), generator) for _ in range(batches)]
    return finite(float(torch.stack(values).mean()))


def finite(value: float) -> float | None:
    """Five digits of it, or None."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


# Figures

NO_MATPLOTLIB = "matplotlib is missing; pip install -r requirements/experiments.txt"


def read_report(path: Path) -> Result:
    try:
        report = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); give what --output wrote") from error
    if not isinstance(report, dict) or "experiment" not in report:
        raise InputError(f"{path} is no report of an experiment; give what --output wrote")
    return report


def has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def plot(name: str, draw: Callable[[Result], "Figure"], path: Path) -> None:
    """Draw the figure of an experiment's report, next to it."""
    if not has_matplotlib():
        raise InputError(NO_MATPLOTLIB)
    report = read_report(path)
    if report["experiment"] != name:
        raise InputError(f"{path} is a report of {report['experiment']}; draw it with that experiment")
    import matplotlib

    matplotlib.use("agg")
    with matplotlib.rc_context(STYLE):
        draw(report).savefig(path.with_suffix(".png"))
    print(f"wrote {path.with_suffix('.png')}")
