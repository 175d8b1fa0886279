"""Layers on streams of their own, which are played on the CPU by noting who waits for whom."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tests.core.models import retnet
from tests.helpers import assert_close
from torchscale_fairseq.core.ops import side_by_side as module
from torchscale_fairseq.core.ops.side_by_side import side_by_side, with_sides


class Stream:
    """Notes what it waits for; the current one is the last of ``current``."""

    current: ClassVar[list["Stream"]] = []
    events: ClassVar[list[str]] = []

    def __init__(self, name: str) -> None:
        self.name = name

    def wait_stream(self, other: "Stream") -> None:
        """Note it."""
        self.events.append(f"{self.name} after {other.name}")


@contextmanager
def entered(stream: Stream) -> Iterator[None]:
    Stream.current.append(stream)
    yield
    Stream.current.pop()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the streams do."""
    monkeypatch.setattr(Stream, "current", [Stream("main")])
    monkeypatch.setattr(Stream, "events", [])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream.current[-1])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(module, "_streams", lambda _: [Stream("a"), Stream("b"), Stream("c")])
    return Stream.events


def times(factor: int) -> Callable[[Tensor], Tensor]:
    def layer(x: Tensor) -> Tensor:
        Stream.events.append(f"{factor} on {Stream.current[-1].name}")
        return x * factor

    return layer


def test_each_layer_has_a_stream_that_waits_and_is_waited_for(streams: list[str]) -> None:
    with with_sides():
        outputs = side_by_side(torch.ones(1), times(2), times(3), times(5))
    assert [int(x) for x in outputs] == [2, 3, 5]
    assert streams == ["a after main", "3 on a", "b after main", "5 on b", "2 on main", "main after a", "main after b"]


def test_one_stream_does_all_outside_of_recorded_steps(streams: list[str]) -> None:
    with with_sides():
        pass
    outputs = side_by_side(torch.ones(1), times(2), times(3))
    assert [int(x) for x in outputs] == [2, 3]
    assert streams == ["2 on main", "3 on main"]


@torch.no_grad()
def test_a_retnet_computes_the_same(streams: list[str]) -> None:
    model, tokens = retnet(), torch.randint(4, 9, (2, 5), generator=torch.Generator().manual_seed(0))
    expected, _ = model(tokens)
    with with_sides():
        found, _ = model(tokens)
    assert_close(found, expected, "float64")
    assert streams.count("main after c") == len(model.layers)
