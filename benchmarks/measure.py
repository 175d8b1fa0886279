"""Time, memory and the machine's matrix product rate."""

import gc
import multiprocessing
import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def time_in_turns(steps: Mapping[str, Callable[[], Any]], *, warmups: int, repeats: int) -> dict[str, float]:
    """Median seconds of each step. They take turns (A B A B ...), so that other load on the machine meets all."""
    for _ in range(warmups):
        for step in steps.values():
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product of random numbers."""
    n = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    seconds = time_in_turns({"product": lambda: a @ b}, warmups=3, repeats=10)["product"]
    return 2 * n**3 / seconds


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a Python process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def if_it_fits(function: Callable[..., T], *arguments: Any) -> T | None:
    """What the function returns, or None if the GPU's memory does not suffice; either way its leftovers are freed."""
    try:
        result = function(*arguments)
    except torch.OutOfMemoryError:
        result = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """Ask the driver twice a second for the bytes of the first visible GPU that are in use, and give the list of
    answers, which stays empty without a GPU. Unlike torch's counts it has the memory that CUDA graphs keep for
    themselves."""
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            seen.append(_used_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    if torch.cuda.is_available() and shutil.which("nvidia-smi"):
        thread.start()
    try:
        yield seen
    finally:
        done.set()


def _used_bytes() -> int:
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    query = ["nvidia-smi", "-i", first, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, check=True, capture_output=True, text=True).stdout) * 2**20


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def resident_bytes() -> int:
    """Memory of this process now."""
    return _status_bytes("VmRSS")


def peak_resident_bytes() -> int:
    """The most it has been; of this process alone, where ru_maxrss begins with what its parent had."""
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024
