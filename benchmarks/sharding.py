"""Fully sharded training on the GPUs of one machine: python -m benchmarks.sharding PART.

Each part starts fairseq-train by torchrun on made-up text (fairseq's task dummy_lm) and prints a table: seconds per
update, tokens per second and utilisation of a GPU, and peak memory. Initial values are drawn on the GPU and so equal
each other, sharded or not. One GPU (--processes 1) does for equality, seven and save. Words after -- are options of
fairseq-train: python -m benchmarks.sharding seven --keep-activations --batches 8,6,4 -- --compile
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fairseq import checkpoint_utils, models, trainer
from fairseq.logging import metrics
from fairseq_cli import train

from benchmarks.training_profile import profiled
from torchscale_fairseq import plugin
from torchscale_fairseq.core.deferred_values import DeferredValues, draw_deferred
from torchscale_fairseq.hooks.sharding.memory import sharded_memory, sizes_of

PEAK = 989e12
"""FLOP/s of an H100 or H200 in bfloat16."""
LENGTH = 2048
DICTIONARY = 49_992
WARM_UP = 4
"""Updates that are not counted."""
BETWEEN_SAVES = 60
"""Updates before an asynchronous save: meanwhile memory is reserved, or the save before it is written."""
MARK = "MEASURED "
STALL = "SAVED "
PROFILE = "--profile"
LOGGED_AT_ONCE = ["--log-interval", "1"]
"""Options of runs whose every loss counts; others log an update when the next one is made."""
SHARDED = ["--ddp-backend", "fully_sharded"]
GPT_1_4B = ["--arch", "gpt_deepnorm_xl"]
GPT_7B = ["--arch", "gpt_deepnorm", "--decoder-layers", "32", "--decoder-embed-dim", "4096"]
GPT_7B += ["--decoder-ffn-embed-dim", "16384", "--decoder-attention-heads", "32"]
RECOMPUTING = ["--checkpoint-activations"]
TINY = ["--decoder-layers", "2", "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "32"]
TINY_RETNET = ["--decoder-retention-heads", "2", "--decoder-value-embed-dim", "32"]


class Run(NamedTuple):
    """One training run."""

    title: str
    flags: list[str]
    batch: int
    updates: int = 12


class Measured(NamedTuple):
    """What the processes of a run report; None where they ran out of memory."""

    seconds: float
    peak_bytes: int
    losses: list[float]
    norms: list[float]
    saves: list[float]
    flops: float
    planned: float = 0.0
    """Bytes by the table of docs/scaling.md; 0 of a run that is not sharded."""


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line and run a part."""
    given = sys.argv[1:] if words is None else list(words)
    if given[:1] == ["worker"]:
        work(given[1:])
        return
    cut = given.index("--") if "--" in given else len(given)
    options = _parser().parse_args(given[:cut])
    options.train_options = given[cut + 1 :]
    PARTS[options.part](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--batches",
        help="batch sizes per GPU: all of them of speed (4,8), the first that fits of others (32,24,16,12,8,4,2)",
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="runs of speed, seven or save with TEXT in their titles"
    )
    parser.add_argument("--updates", type=int, default=12, help="of a run of seven (12)")
    parser.add_argument("--keep-activations", action="store_true", help="seven without --checkpoint-activations")
    parser.add_argument(PROFILE, action="store_true", help="print where the time of three updates of speed goes")
    parser.add_argument("--cpu", action="store_true", help="tiny models on the CPU, to try the script")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("--folder", help="for checkpoints; a temporary one by default")
    return parser


def equality(options: argparse.Namespace) -> None:
    """Losses and gradient norms in float32: one process, DDP and fully sharded."""
    flags = ["--arch", "gpt_deepnorm_base", "--dropout", "0", *LOGGED_AT_ONCE]
    alone = measure(Run("one process", [*flags, "--update-freq", str(options.processes)], 2, 6), options, processes=1)
    for title, backend in (("DDP", []), ("fully sharded", SHARDED)):
        found = measure(Run(title, [*flags, *backend], 2, 6), options)
        if found and alone:
            worst = max(abs(a - b) / abs(b) for a, b in zip(found.norms, alone.norms, strict=True))
            print(f"{title}: losses {found.losses} against {alone.losses}; norms differ by {worst:.1e} at most")


def speed(options: argparse.Namespace) -> None:
    """1.4 billion parameters, DDP next to fully sharded, in the same call."""
    flags = [*GPT_1_4B, "--bf16"]
    sides = {"DDP": [], "fully sharded": SHARDED, "ZeRO-2": [*SHARDED, "--no-reshard-after-forward"]}
    sides["compiled DDP"], sides["compiled, fully sharded"] = ["--compile"], [*SHARDED, "--compile"]
    for title, backend in sides.items():
        for batch in map(int, (options.batches or "4,8").split(",")):
            run = Run(f"1.4B, {title}", [*flags, *backend], batch, 16)
            if options.only in run.title:
                report(run, options)


def seven(options: argparse.Namespace) -> None:
    """7 billion parameters in bfloat16 with recomputation, at the largest batch that fits."""
    for title, arch in (("retnet_7b", ["--arch", "retnet_7b"]), ("gpt 7B", GPT_7B)):
        if options.only in title:
            recomputing = [] if options.keep_activations else RECOMPUTING
            largest(title, [*arch, "--bf16", *SHARDED, *recomputing], options, updates=options.updates)


def thirteen(options: argparse.Namespace) -> None:
    """13 billion parameters, 20 updates."""
    largest("retnet_13b", ["--arch", "retnet_13b", "--bf16", *SHARDED, *RECOMPUTING], options, updates=20)


def save(options: argparse.Namespace) -> None:
    """How long training stands still for a checkpoint of 7 billion parameters, and for two of 1.4 billion."""
    common = ["--bf16", *SHARDED, *RECOMPUTING]
    for size, flags, saves in (("1.4B", GPT_1_4B, 2), ("gpt 7B", GPT_7B, 1)):
        for title, more, between in (("blocking", [], 6), ("asynchronous", ["--async-checkpoint"], BETWEEN_SAVES)):
            options_of_save = ["--save-interval-updates", str(between), *more]
            run = Run(f"{size}, {title}", [*flags, *common, *options_of_save], 2, saves * between)
            if options.only in run.title:
                measure(run, options, saving=True)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    function.__name__: function for function in (equality, speed, seven, thirteen, save)
}


def largest(title: str, flags: list[str], options: argparse.Namespace, updates: int = 12) -> None:
    """Report the first batch size that fits."""
    for batch in map(int, (options.batches or "32,24,16,12,8,4,2").split(",")):
        if report(Run(title, flags, batch, updates), options):
            return


def report(run: Run, options: argparse.Namespace) -> bool:
    """Measure a run and print a line; whether it fitted."""
    found = measure(run, options)
    if found is None:
        if options.profile:
            return True
        print(f"{run.title}, {run.batch} x {LENGTH} tokens per GPU: did not fit or failed", flush=True)
        return False
    tokens = run.batch * (LENGTH if not options.cpu else 16)
    planned = f" ({found.planned / 2**30:.1f} by the table)" if found.planned else ""
    print(
        f"{run.title}, {run.batch} x {LENGTH} tokens per GPU: {found.seconds:.3f} s, {tokens / found.seconds:,.0f} "
        f"tokens/s and GPU, {100 * found.flops / found.seconds / PEAK:.1f} % of 989 TFLOP/s, "
        f"{found.peak_bytes / 2**30:.1f} GiB{planned}; losses {found.losses[0]} to {found.losses[-1]}",
        flush=True,
    )
    return True


def measure(
    run: Run, options: argparse.Namespace, *, processes: int | None = None, saving: bool = False
) -> Measured | None:
    """Run and collect what the processes print; None if they fail."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        words = command(run, options, processes or options.processes, folder, saving)
        if options.dry_run:
            print(shlex.join(words))
            return None
        status, output = _run(words, run.title)
    if options.profile:
        print(f"{run.title}, {run.batch} x {LENGTH} tokens per GPU\n{output}", flush=True)
    found = None if status else measured(output)
    if found is None and (status or not options.profile):
        lines = [line for line in output.splitlines() if "Error" in line or "fairseq-train:" in line]
        print("\n".join(lines[-4:]) or output[-1500:], flush=True)
    return found


def _run(words: list[str], title: str) -> tuple[int, str]:
    """The status and output of a program. The times of its saves are printed as they come, since a run that is ended
    while it writes would lose them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    lines = []
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    ) as program:
        assert program.stdout is not None
        for line in program.stdout:
            lines.append(line)
            if STALL in line:
                print(f"{title}: {line.split(STALL, 1)[1].strip()}", flush=True)
    return program.returncode, "".join(lines)


def measured(output: str) -> Measured | None:
    """The figures in what the processes of a run printed; None if there are none."""
    reports = list(_reports(output))
    if not reports:
        return None
    first = min(reports, key=lambda r: r["rank"])
    return Measured(
        statistics.median(first["seconds"][WARM_UP:] or first["seconds"]),
        max(r["peak"] for r in reports),
        first["losses"],
        first["norms"],
        first["saves"],
        first["flops"],
        first["planned"],
    )


def _reports(output: str) -> Iterator[dict[str, Any]]:
    for line in output.splitlines():
        if MARK in line:
            yield json.loads(line.split(MARK, 1)[1])


def command(run: Run, options: argparse.Namespace, processes: int, folder: str, saving: bool) -> list[str]:
    """The words that start a run."""
    length = 16 if options.cpu else LENGTH
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words += ["-m", "benchmarks.sharding", "worker", "--task", "dummy_lm", "--dict-size", str(DICTIONARY)]
    words += ["--tokens-per-sample", str(length), "--batch-size", str(run.batch), "--dataset-size", "100000"]
    words += ["--criterion", "linear_cross_entropy", "--share-decoder-input-output-embed", *run.flags]
    words += ["--optimizer", "adam", "--lr", "1e-4", "--clip-norm", "1", "--max-update", str(run.updates)]
    words += ["--disable-validation", "--log-format", "none", "--save-dir", folder, "--no-epoch-checkpoints"]
    words += [*([] if saving else ["--no-save"]), *options.train_options, *[PROFILE] * options.profile]
    words += ["--user-dir", str(Path(__file__).resolve().parent.parent / "torchscale_fairseq")]
    if options.cpu:
        words[words.index(str(DICTIONARY))] = "60"
        words += ["--cpu", *TINY, *(TINY_RETNET if "retnet" in run.title else ["--decoder-attention-heads", "2"])]
    return words


class Recorder:
    """Times what fairseq's Trainer does in this process.

    Args:
        on_gpu: whether the model is on a GPU.
    """

    def __init__(self, on_gpu: bool):
        self.on_gpu = on_gpu
        self.found: dict[str, Any] = {"seconds": [], "saves": [], "losses": [], "norms": [], "flops": 0.0, "peak": 0}
        self.found["planned"] = 0.0

    def building(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        """``fairseq.models.build_model`` of a run that is not sharded, with the values of one that is."""

        def build_model(*arguments: Any, **keywords: Any) -> Any:
            device = torch.device("cuda", torch.cuda.current_device()) if self.on_gpu else torch.device("cpu")
            with DeferredValues(device.type).building():
                model = stock(*arguments, **keywords)
            draw_deferred(model.parameters(), device)
            return model

        return build_model

    def updating(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        """``Trainer.train_step``."""

        def train_step(trainer: Any, samples: Any, *arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            output = stock(trainer, samples, *arguments, **keywords)
            self.found["seconds"].append(time.perf_counter() - start)
            # the output is rounded to 3 digits, and reading it would wait for the device in every update
            for kept, name in (("losses", "loss"), ("norms", "gnorm")):
                self.found[kept].append(metrics.get_meter("train_inner", name).val)
            if trainer._speed is not None and not self.found["flops"]:
                self.found["flops"] = float(trainer._speed.measure(samples)[1])
                self.found["planned"] = planned_bytes(trainer, samples[0])
            return output

        return train_step

    def resetting(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        """``torch.cuda.reset_peak_memory_stats``, which fairseq calls after each update."""

        def reset_peak_memory_stats(*arguments: Any) -> None:
            self.found["peak"] = max(self.found["peak"], torch.cuda.max_memory_allocated())
            stock(*arguments)

        return reset_peak_memory_stats

    def saving(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        """``checkpoint_utils.save_checkpoint``."""

        def save_checkpoint(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            result = stock(*arguments, **keywords)
            self.found["saves"].append(time.perf_counter() - start)
            if os.environ["RANK"] == "0" and not arguments[0].no_save:
                sys.stdout.write(f"{STALL}training stood still for {self.found['saves'][-1]:.1f} s\n")
                sys.stdout.flush()
            return result

        return save_checkpoint

    def report(self) -> str:
        """A line for ``measure``."""
        read = {kept: list(map(float, self.found[kept])) for kept in ("losses", "norms")}
        return f"{MARK}{json.dumps({'rank': int(os.environ['RANK']), **self.found, **read})}\n"


def planned_bytes(trainer: trainer.Trainer, sample: dict[str, Any]) -> float:
    """Memory of a process by the table of docs/scaling.md; 0 if the model is not sharded."""
    cfg = trainer.cfg
    if cfg.distributed_training.ddp_backend != "fully_sharded":
        return 0.0
    parameters, per_layer, layers = sizes_of(trainer.get_model())
    return sharded_memory(
        parameters,
        per_layer=per_layer,
        layers=layers,
        processes=trainer.data_parallel_world_size,
        compute_bytes=2 if cfg.common.bf16 else 4,
        tokens=sample["net_input"]["src_tokens"].numel(),
        width=cfg.model.decoder_embed_dim,
        recompute=cfg.model.checkpoint_activations,
    ).total


def work(words: list[str]) -> None:
    """fairseq-train in one process, which prints what it measured.

    Args:
        words: of its command line.
    """
    plugin.register()
    recorder = Recorder(torch.cuda.is_available() and "--cpu" not in words)
    if "fully_sharded" not in words:
        models.build_model = recorder.building(models.build_model)
    if PROFILE in words:
        words.remove(PROFILE)
        trainer.Trainer.train_step = profiled(trainer.Trainer.train_step, first=WARM_UP, updates=3)
        if os.environ["RANK"] != "0":
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    else:
        trainer.Trainer.train_step = recorder.updating(trainer.Trainer.train_step)
    torch.cuda.reset_peak_memory_stats = recorder.resetting(torch.cuda.reset_peak_memory_stats)
    checkpoint_utils.save_checkpoint = recorder.saving(checkpoint_utils.save_checkpoint)
    sys.argv = ["fairseq-train", *words]
    train.cli_main()
    sys.stdout.write(recorder.report())


if __name__ == "__main__":
    main()
