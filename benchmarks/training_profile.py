"""Where the time of some updates of fairseq-train goes on a GPU: milliseconds per update by group of kernels and by
what the host waits for. ``benchmarks/throughput.py --profile`` runs it.

    python -m benchmarks.training_profile --first 60 --updates 5 -- DATA --user-dir torchscale_fairseq ...
"""

import argparse
import json
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import synchronize

Event = dict[str, Any]

GROUPS = (
    ("communication", r"^nccl"),
    ("attention", r"flash|fmha|sdpa|attention"),
    ("matrix products", r"gemm|nvjet|cutlass|xmma|splitKreduce|cublas"),
    ("loss", r"softmax|nll_loss|cross_entropy"),
    ("optimizer", r"[Aa]dam|lpnorm|LpNorm"),
    ("compiled", r"^triton_"),
    ("copies", r"[Mm]emcpy|copy|CatArray"),
    ("fills", r"[Mm]emset|[Ff]ill"),
    ("foreach", r"multi_tensor_apply"),
    ("reductions", r"reduce"),
    ("other elementwise", r"elementwise"),
)
"""By a part of a kernel's name; the first that fits counts."""
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def group_of(kernel: str) -> str:
    """The group of a kernel by its name."""
    return next((name for name, pattern in GROUPS if re.search(pattern, kernel)), "other")


def busy_microseconds(events: Iterable[Event]) -> float:
    """The time in which at least one of them ran."""
    total, until = 0.0, float("-inf")
    for start, end in sorted((e["ts"], e["ts"] + e["dur"]) for e in events):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def summary(trace: list[Event], updates: int) -> str:
    """Lines of text: milliseconds per update.

    Args:
        trace: events of a chrome trace as torch.profiler writes it.
        updates: which the trace covers.
    """
    kernels = [e for e in trace if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    calls = [e for e in trace if e.get("cat") == "cuda_runtime"]
    window = [e for e in trace if e.get("name") == "updates" and e.get("cat") == "user_annotation"]
    by_group: dict[str, list[float]] = defaultdict(list)
    by_name: dict[str, list[float]] = defaultdict(list)
    for e in kernels:
        by_group[group_of(e["name"])].append(e["dur"])
        by_name[e["name"]].append(e["dur"])
    waits: dict[str, list[float]] = defaultdict(list)
    for e in calls:
        if e["name"] in WAITS:
            waits[e["name"]].append(e["dur"])
    whole, busy = sum(e["dur"] for e in window[:1]), busy_microseconds(kernels)
    idle, count = _ms(whole - busy, updates), len(kernels) / updates
    lines = [f"an update: {_ms(whole, updates)} ms, {count:.0f} kernels in {_ms(busy, updates)} ms, idle {idle} ms"]
    if "communication" in by_group:
        computing = busy_microseconds(e for e in kernels if group_of(e["name"]) != "communication")
        lines.append(f"{_ms(busy - computing, updates)} ms of them communicate while nothing computes")
    lines += _rows("kernels", by_group, updates)
    lines += _rows("host waits", waits, updates)
    lines += _rows("largest kernels", dict(sorted(by_name.items(), key=lambda item: -sum(item[1]))[:25]), updates)
    return "\n".join(lines)


def _rows(title: str, durations: dict[str, list[float]], updates: int) -> list[str]:
    rows = sorted(durations.items(), key=lambda item: -sum(item[1]))
    return [f"{title}:", *(f"{_ms(sum(d), updates)} ms {len(d) / updates:6.1f} x  {name[:110]}" for name, d in rows)]


def _ms(microseconds: float, updates: int) -> str:
    return f"{microseconds / 1e3 / updates:8.2f}"


def profiled(train_step: Callable[..., Any], first: int, updates: int) -> Callable[..., Any]:
    """A Trainer's ``train_step`` that profiles this many updates from the ``first`` on, prints the summary of the first
    process and ends."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] * torch.cuda.is_available()
    profiler = torch.profiler.profile(activities=activities)
    window = torch.profiler.record_function("updates")

    def step(trainer: Any, *arguments: Any, **keywords: Any) -> Any:
        if trainer.get_num_updates() == first:
            synchronize()
            profiler.start()
            window.__enter__()
        result = train_step(trainer, *arguments, **keywords)
        if trainer.get_num_updates() == first + updates:
            synchronize()
            window.__exit__(None, None, None)
            profiler.stop()
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "trace.json"
                profiler.export_chrome_trace(str(path))
                if trainer.data_parallel_rank == 0:
                    print(summary(json.loads(path.read_text())["traceEvents"], updates), flush=True)
            raise SystemExit
        return result

    return step


def train(words: list[str], step: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Run fairseq-train with another ``train_step`` of its Trainer.

    Args:
        words: arguments of the command.
        step: makes it of the Trainer's own.
    """
    from fairseq_cli.train import cli_main

    from torchscale_fairseq import plugin
    from torchscale_fairseq.hooks.training.trainer import Trainer

    plugin.register()
    Trainer.train_step = step(Trainer.train_step)  # type: ignore[method-assign]
    sys.argv = ["fairseq-train", *words]
    cli_main()


def main(words: list[str]) -> None:
    here = words.index("--")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=60, help="update to begin with (60)")
    parser.add_argument("--updates", type=int, default=5, help="to profile (5)")
    options = parser.parse_args(words[:here])
    train(words[here + 1 :], lambda step: profiled(step, options.first, options.updates))


if __name__ == "__main__":
    main(sys.argv[1:])
