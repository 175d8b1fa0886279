"""Updates of fairseq-train on one batch that stays on the device: what training costs without loading.

    python -m benchmarks.fixed_batch --updates 30 -- DATA --user-dir torchscale_fairseq ...

The command line is fairseq-train's. Its first batch is moved to the device once and trained on again and again, by the
Trainer's own ``train_step``. The last line that this prints is JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.measure import synchronize
from benchmarks.training_profile import train


class Measured(Exception):
    """Ends the training; the argument is the seconds of an update."""


def repeating(train_step: Callable[..., Any], warmup: int, updates: int) -> Callable[..., Any]:
    """A Trainer's ``train_step`` that trains on its first batch ``warmup`` times and then, timed, ``updates`` times.

    Raises:
        Measured: afterwards.
    """

    def step(trainer: Any, samples: list[Any], *arguments: Any, **keywords: Any) -> None:
        samples = [trainer._prepare_sample(sample)[0] for sample in samples]
        for _ in range(warmup):
            train_step(trainer, samples, *arguments, **keywords)
        synchronize()
        start = time.perf_counter()
        for _ in range(updates):
            train_step(trainer, samples, *arguments, **keywords)
        synchronize()
        raise Measured((time.perf_counter() - start) / updates)

    return step


def main(words: list[str]) -> None:
    here = words.index("--")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--warmup", type=int, default=10, help="updates that do not count (10)")
    parser.add_argument("--updates", type=int, default=30, help="that count (30)")
    options = parser.parse_args(words[:here])
    try:
        train(words[here + 1 :], lambda step: repeating(step, options.warmup, options.updates))
    except Measured as found:
        print(json.dumps({"seconds": found.args[0]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
