"""The thread that reads batches ahead, and the workers that read for it, end before the process does."""

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("fairseq")

from fairseq.data.iterators import BufferedIterator

from tests.fairseq_cli import REPOSITORY
from torchscale_fairseq import plugin
from torchscale_fairseq.hooks.stock.batches import stop_reading

plugin.register()


class Endless:
    """As many batches as anyone wants."""

    def __len__(self) -> int:
        return 10**9

    def __iter__(self) -> Iterator[int]:
        return itertools.count()


@pytest.mark.parametrize("taken", [1, 5])
def test_a_full_queue_does_not_hold_it(taken: int) -> None:
    """fairseq's own thread waits for somebody to take the next batch, for ever."""
    batches = BufferedIterator(2, Endless())
    assert [next(batches) for _ in range(taken)] == list(range(taken))
    thread = batches._consumer
    assert isinstance(thread, threading.Thread) and thread.is_alive()
    stop_reading()
    assert not thread.is_alive()


ENDING_WITHIN_AN_EPOCH = """
import atexit
from fairseq.data.iterators import BufferedIterator
from torch.utils.data import DataLoader
from torchscale_fairseq import plugin

class Pinned(DataLoader):  # without a GPU, torch pins no memory and waits for no worker
    def __iter__(self):
        batches = super().__iter__()
        for worker in batches._workers:
            atexit.register(lambda worker=worker: print("alive" if worker.is_alive() else "ended"))
        return batches

plugin.register()
loader = Pinned(range(1000), num_workers=2, persistent_workers=True)
print(int(next(BufferedIterator(2, loader))))
"""


def test_torch_finds_its_workers_ended() -> None:
    """It registers a wait of five seconds for each, which the process would spend at its end."""
    program = [sys.executable, "-c", ENDING_WITHIN_AN_EPOCH]
    done = subprocess.run(program, capture_output=True, text=True, cwd=REPOSITORY, timeout=300)
    assert done.stdout.split() == ["0", "ended", "ended"], done.stderr


def test_what_is_read_is_stocks() -> None:
    assert list(BufferedIterator(2, range(7))) == list(range(7))
