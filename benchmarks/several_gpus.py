"""Programs on the GPUs of a machine: each has those that it needs to itself, and several run side by side."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import TIMEOUT_MAX, Condition


def visible(devices: Sequence[int]) -> Mapping[str, str]:
    """The variables of a program that sees these GPUs alone; where there is none, it sees what it finds."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))} if devices else {}


class Gpus:
    """GPUs that are taken and given back.

    Args:
        count: of the machine; without any, one program runs at a time.
    """

    def __init__(self, count: int):
        self._count = count
        self._free = list(range(max(1, count)))
        self._changed = Condition()

    def take(self, needed: int, end: float) -> list[int] | None:
        """Wait for this many GPUs, or for all that there are.

        Args:
            needed: how many.
            end: the time by ``time.monotonic`` until which to wait.

        Returns:
            Their indices; None if the time is over.
        """
        needed = min(needed, max(1, self._count))
        with self._changed:
            if not self._changed.wait_for(
                lambda: len(self._free) >= needed, min(max(0.0, end - time.monotonic()), TIMEOUT_MAX)
            ):
                return None
            taken, self._free = self._free[:needed], self._free[needed:]
        return taken

    def give_back(self, taken: Sequence[int]) -> None:
        """Let others take them."""
        with self._changed:
            self._free += taken
            self._changed.notify_all()

    def run_each(self, jobs: Iterable[tuple[int, Callable[[Sequence[int]], object]]], end: float) -> None:
        """Run jobs, begun in their order: one that needs several GPUs is not overtaken by those that need one.

        Args:
            jobs: the number of GPUs that a job needs, and a function of their indices. It gets none if there are none.
            end: the time by ``time.monotonic`` after which none begins.
        """
        with ThreadPoolExecutor(max(1, self._count)) as threads:
            running = []
            for needed, job in jobs:
                taken = self.take(needed, end)
                if taken is None or time.monotonic() >= end:
                    break
                running.append(threads.submit(self._run, job, taken))
        for future in running:
            future.result()

    def _run(self, job: Callable[[Sequence[int]], object], taken: list[int]) -> None:
        try:
            job(taken if self._count else [])
        finally:
            self.give_back(taken)
