"""The thread that reads batches ahead ends before the process does."""

import itertools
import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("fairseq")

from fairseq.data.iterators import BufferedIterator

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


def test_what_is_read_is_stocks() -> None:
    assert list(BufferedIterator(2, range(7))) == list(range(7))
