"""Batches that stock fairseq leaves out, or cannot make with current numpy."""

import atexit
import inspect
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from fairseq.data import data_utils, language_pair_dataset, token_block_dataset
from fairseq.modules import dynamic_crf_layer
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter


def keep_the_last_batch(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Training, validation and generation silently leave out the last batch where its size is no multiple of
    ``--required-batch-size-multiple`` (8 by default): of 21 test sentences 16 are translated. Batches are
    consecutive runs of the indices, so whatever they do not reach makes up the missing one."""

    def batch_by_size(indices: Any, *args: Any, **kwargs: Any) -> Any:
        if inspect.signature(stock).bind(indices, *args, **kwargs).arguments.get("fixed_shapes") is not None:
            return stock(indices, *args, **kwargs)
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64)
        if len(indices) == 0:
            return []
        batches = stock(indices, *args, **kwargs)
        batched = sum(len(batch) for batch in batches)
        return batches if batched == len(indices) else [*batches, indices[batched:]]

    return batch_by_size


SECONDS_TO_STOP = 10.0
"""How long the end of a process waits for the threads that read batches ahead."""
_reading: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""Threads that read batches ahead, and iterators whose batches come from worker processes."""


def stop_reading_at_exit(stock: Any) -> type:
    """A thread reads batches ahead, and a run that ends within an epoch leaves it running. The interpreter and the
    libraries below it are then taken down under the thread, and now and then the process aborts (exit status -6) after
    it has done all its work. Here the thread ends first, and the workers of its loader after it: with pinned memory
    torch waits five seconds for each worker that nobody has told to end."""

    class BackgroundConsumer(stock):
        def __init__(self, items: Any, source: Iterable[Any], *arguments: Any):
            self.stopped = threading.Event()
            super().__init__(items, _until(self.stopped, source), *arguments)
            _reading.add(self)

    return BackgroundConsumer


def _until(stopped: threading.Event, source: Iterable[Any]) -> Iterator[Any]:
    items = iter(source)
    if isinstance(items, _MultiProcessingDataLoaderIter):
        _reading.add(items)
    atexit.unregister(stop_reading)
    atexit.register(stop_reading)  # what is registered last is called first: before torch's wait for its workers
    for item in items:
        if stopped.is_set():
            return
        yield item


def stop_reading() -> None:
    """End the threads that read batches ahead, whose queues may be full, and then the workers that read for them."""
    deadline = time.monotonic() + SECONDS_TO_STOP
    reading = list(_reading)  # threads may begin meanwhile
    iterators = [one for one in reading if isinstance(one, _MultiProcessingDataLoaderIter)]
    for consumer in (one for one in reading if one not in iterators):
        consumer.stopped.set()
        while consumer.is_alive() and time.monotonic() < deadline:
            try:
                consumer._queue.get_nowait()
            except queue.Empty:
                consumer.join(0.01)
    for items in iterators:
        items._shutdown_workers()


class _Numpy(ModuleType):
    """numpy, with the names that fairseq uses and numpy has dropped."""

    compat = SimpleNamespace(long=int)
    int = int
    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def percentile(values: Any, percents: Any, interpolation: str = "linear") -> Any:
        return np.percentile(values, percents, method=interpolation)  # type: ignore[call-overload]


def speak_current_numpy() -> None:
    """``--sample-break-mode eos`` and ``--num-batch-buckets`` (and span masking without overlap, and CRF
    decoders) use names that numpy 1.24, 2.0 and 2.4 dropped. Only the modules concerned see them again."""
    has_all = hasattr(np, "compat") and "interpolation" in inspect.signature(np.percentile).parameters
    if has_all and hasattr(np, "int"):
        return
    for module in (data_utils, language_pair_dataset, token_block_dataset, dynamic_crf_layer):
        if module.np is np:
            module.np = _Numpy("numpy")
