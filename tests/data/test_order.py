"""The order of samples: a permutation of the corpus, in epochs, by weights, the same wherever one begins."""

from collections import Counter

import numpy as np
import pytest

from torchscale_fairseq.data.text.order import SampleOrder

PARTS = [np.array([5, 17, 1, 30]), np.array([8, 3])]


def read(order: SampleOrder, epoch: int) -> list[tuple[int, int]]:
    """All samples of an epoch, as part and number within it, through the windows."""
    found: list[tuple[int, int]] = []
    while len(found) < len(order):
        number = order.window_of(len(found))
        assert order.start_of(number) == len(found)
        parts, within, _ = order.window(epoch, number)
        found += zip(parts.tolist(), within.tolist(), strict=True)
    return found


def every_sample() -> set[tuple[int, int]]:
    counts = np.concatenate(PARTS).tolist()
    return {(part, number) for part, count in enumerate(counts) for number in range(count)}


@pytest.mark.parametrize("read_ahead", [0, 1, 7, 64, 1000])
def test_each_epoch_reads_each_sample_once(read_ahead: int) -> None:
    order = SampleOrder(PARTS, None, read_ahead=read_ahead, seed=1)
    for epoch in (0, 1, 5):
        samples = read(order, epoch)
        assert len(samples) == 64 and set(samples) == every_sample()


def test_epochs_and_seeds_differ_and_are_reproducible() -> None:
    first, second = (SampleOrder(PARTS, None, read_ahead=16, seed=seed) for seed in (1, 2))
    assert read(first, 0) == read(SampleOrder(PARTS, None, read_ahead=16, seed=1), 0)
    assert len({tuple(read(order, epoch)) for order in (first, second) for epoch in (0, 1)}) == 4


def test_without_a_seed_it_is_the_order_on_disk() -> None:
    assert read(SampleOrder(PARTS, None, read_ahead=100, seed=None), 0) == sorted(every_sample())


def test_windows_are_bounded_by_the_read_ahead() -> None:
    order = SampleOrder([np.full(1000, 10)], None, read_ahead=64, seed=1)
    sizes = [len(order.window(0, number)[0]) for number in range(order.window_of(9999) + 1)]
    assert max(sizes) <= 64 and min(sizes) >= 62


def test_shuffling_mixes_the_parts() -> None:
    parts, _, _ = SampleOrder([np.full(10, 100)], None, read_ahead=1000, seed=1).window(0, 0)
    assert len(np.flatnonzero(np.diff(parts))) > 800


def test_weights_decide_how_much_of_each_source_an_epoch_holds() -> None:
    order = SampleOrder(PARTS, [1.0, 3.0], read_ahead=16, seed=1)
    assert order.quotas.tolist() == [16, 48]
    for epoch in range(3):
        samples = read(order, epoch)
        assert sum(part < 4 for part, _ in samples) == 16
        for window in range(4):
            parts, _, _ = order.window(epoch, window)
            assert (parts < 4).sum() == 4


def test_a_source_with_a_small_weight_goes_on_where_it_was_and_a_large_one_begins_again() -> None:
    order = SampleOrder(PARTS, [1.0, 3.0], read_ahead=16, seed=1)
    read_of_first = Counter(sample for epoch in range(3) for sample in read(order, epoch) if sample[0] < 4)
    assert len(read_of_first) == 48 and set(read_of_first.values()) == {1}
    read_of_second = Counter(sample for sample in read(order, 0) if sample[0] >= 4)
    assert len(read_of_second) == 11 and set(read_of_second.values()) == {4, 5}
    _, _, passes = order.window(0, 3)
    assert passes.max() == 4


def test_shares_are_whole_and_complete() -> None:
    order = SampleOrder([np.array([10]), np.array([10]), np.array([13])], [1, 1, 1], read_ahead=5, seed=1)
    assert order.quotas.tolist() == [11, 11, 11]
    assert SampleOrder([np.array([4]), np.array([6])], [1, 2], read_ahead=5, seed=1).quotas.tolist() == [3, 7]
