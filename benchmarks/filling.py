"""Running programs for the sake of the caches of torch and Triton, in which what they compile stays.

The programs share a machine, so the speeds that they see mean nothing. Kernels are therefore tuned anew where a program
runs alone: neither torch nor fla keeps the settings that were found here, only the compiled code.
"""

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from torch._inductor.runtime.cache_dir_utils import cache_dir

from benchmarks.limited import run_within
from benchmarks.several_gpus import visible

CACHE = "TORCHINDUCTOR_CACHE_DIR"
UNTUNED = {"FLA_CACHE_RESULTS": "0"}
"""fla does not keep the settings that it finds."""
TUNED = "*.best_config"
"""Files in torch's cache, each with the setting of a kernel that was the fastest."""


def use_own_cache() -> None:
    """Let programs that this process starts keep torch's code in a folder of the benchmarks within torch's own."""
    os.environ[CACHE] = str(Path(cache_dir(), "benchmarks"))


def fill(commands: Sequence[tuple[int, Sequence[str]]], at_once: int, seconds: float, gpus: int = 1) -> None:
    """Run programs side by side. Their output is discarded, and it does not matter whether they fail. Settings of
    kernels are removed from torch's cache.

    Args:
        commands: the number of GPUs that a program needs, and its words. Programs share the GPUs.
        at_once: programs that run at the same time.
        seconds: time limit of all together.
        gpus: of the machine.
    """
    end = time.monotonic() + seconds
    cores = {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
    with TemporaryDirectory() as folder, ThreadPoolExecutor(at_once) as threads:
        for place, (needed, words) in enumerate(commands):
            devices = [place % gpus] if needed < gpus else []
            environment = {**UNTUNED, **cores, **visible(devices)}
            threads.submit(_run_until, end, words, Path(folder, str(place)), environment)
    for path in Path(cache_dir()).rglob(TUNED):
        path.unlink(missing_ok=True)


def _run_until(end: float, words: Sequence[str], output: Path, environment: Mapping[str, str]) -> None:
    left = end - time.monotonic()
    if left > 0:
        run_within(left, words, output, environment=environment, grace=1)
