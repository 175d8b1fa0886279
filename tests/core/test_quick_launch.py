"""Launches of compiled kernels without Triton's look at their arguments."""

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from torchscale_fairseq.core.ops import quick_launch
from torchscale_fairseq.core.ops.quick_launch import Repeats, launch

X = torch.zeros(16)


class Compiled:
    """Code that Triton compiled."""

    packed_metadata = ()

    def __init__(self) -> None:
        self.started: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *values: self.started.append((grid[:3], values))


class Kernel:
    """A function decorated with ``triton.jit``."""

    arg_names = ["x", "count", "SIZE"]  # noqa: RUF012

    def __init__(self) -> None:
        self.made: list[Compiled] = []

    def __getitem__(self, _: tuple[int, ...]) -> Any:
        def start(*_: Any, **__: Any) -> Compiled:
            self.made.append(Compiled())
            return self.made[-1]

        return start


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No launches are remembered, and Triton is new enough."""
    monkeypatch.setattr(quick_launch, "_compiled", {})
    monkeypatch.setattr(quick_launch, "_takes_all_arguments", lambda: True)
    yield


def test_the_second_launch_starts_what_the_first_compiled() -> None:
    kernel, other = Kernel(), torch.ones(16)
    launch(kernel, (3,), X, 5, SIZE=8, settings={"num_warps": 4})
    launch(kernel, (7, 2), other, 5, SIZE=8, settings={"num_warps": 4})
    (compiled,) = kernel.made
    ((grid, values),) = compiled.started
    assert grid == (7, 2, 1)
    assert values == (other.data_ptr(), 5, 8)


@pytest.mark.parametrize(
    "changed",
    [
        {"x": X[1:]},
        {"x": X.double()},
        {"count": 16},
        {"count": 1},
        {"SIZE": 4},
        {"settings": {"num_warps": 8}},
    ],
    ids=["not aligned", "dtype", "multiple of 16", "one", "constant", "setting"],
)
def test_triton_looks_at_other_arguments(changed: dict[str, Any]) -> None:
    """It compiles other code for them."""
    kernel = Kernel()
    for given in ({}, changed):
        asked = {"x": X, "count": 5, "SIZE": 8, "settings": {"num_warps": 4}, **given}
        launch(kernel, (3,), asked["x"], asked["count"], SIZE=asked["SIZE"], settings=asked["settings"])
    assert len(kernel.made) == 2 and not kernel.made[0].started


def test_arguments_in_another_order_are_left_to_triton() -> None:
    kernel = Kernel()
    for _ in range(2):
        launch(kernel, (3,), X, SIZE=8, count=5, settings={})
    assert len(kernel.made) == 2


def test_no_endless_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_launch, "MOST", 10)
    for count in range(100):
        launch(Kernel(), (3,), X, count, SIZE=8, settings={})
        assert len(quick_launch._compiled) <= 10


def kept(repeats: Repeats, key: str = "a", **tensors: Tensor | None) -> Compiled:
    """A launch that is known, of a kernel with a number between its two tensors."""
    compiled = Compiled()
    repeats.keep(key, compiled, (3,), {"x": X, "count": 5, "y": X, **tensors}, ["y", "x"])
    return compiled


def test_a_launch_starts_again_with_other_tensors() -> None:
    repeats, x, y = Repeats(), torch.ones(16), torch.zeros(8)
    compiled = kept(repeats)
    assert repeats.start("a", [y, x]) and repeats.start("a", [x, y])
    (grid, first), (_, second) = compiled.started
    assert grid == (3, 1, 1)
    assert first == (x.data_ptr(), 5, y.data_ptr())
    assert second == (y.data_ptr(), 5, x.data_ptr())


def test_only_launches_that_are_alike_start_again() -> None:
    repeats = Repeats()
    compiled = kept(repeats)
    assert not repeats.start("b", [X, X])
    assert not repeats.start("a", [X, X[1:]])  # compiled for addresses that are multiples of 16
    kept(repeats, "c", x=X[1:])
    assert not repeats.start("c", [X, X])
    assert not compiled.started


def test_a_launch_that_is_known_keeps_no_tensor_alive() -> None:
    repeats, x = Repeats(), torch.ones(16)
    alive = weakref.ref(x)
    kept(repeats, x=x)
    assert repeats.start("a", [X, X])
    del x
    assert alive() is None


def test_no_endless_memory_of_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_launch, "MOST", 10)
    repeats = Repeats()
    for key in map(str, range(100)):
        kept(repeats, key)
        assert len(repeats._known) <= 10


def test_a_rotation_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, keys, tables and results stand where they stood at first, and strides, sizes and constants are kept."""
    pytest.importorskip("triton")
    from torchscale_fairseq.core.ops import rotation_kernels as kernels

    compiled, launches = Compiled(), []

    def launch(_: Any, grid: tuple[int, ...], *arguments: Any, settings: dict[str, Any], **others: Any) -> Compiled:
        launches.append((*grid, *arguments, *others.values()))
        return compiled

    monkeypatch.setattr(kernels, "launch", launch)
    monkeypatch.setattr(kernels, "_REPEATS", Repeats())
    rows = torch.zeros(2, 5, dtype=torch.long)
    for given in (None, rows):
        first, second = (_rotated(kernels, given) for _ in range(2))
        ((grid, started),) = compiled.started
        (launched,) = launches
        for value, kept in zip((*grid, *started), launched, strict=True):
            if isinstance(kept, Tensor):
                (place,) = [i for i, x in enumerate(first) if x is kept]
                assert value == second[place].data_ptr()
            else:
                assert value == kept
        compiled.started.clear()
        launches.clear()


def _rotated(kernels: Any, rows: Tensor | None) -> list[Tensor]:
    """What a rotation is given, and its results."""
    query, key = (torch.zeros(2, 5, 4, 8, dtype=torch.bfloat16) for _ in "qk")
    tables = [torch.zeros(1, 5, heads, 4) for heads in (4, 4, 1, 1)]
    others = [] if rows is None else [rows.clone()]
    results = kernels.rotate_both(query, key, *tables, others[0] if others else None, torch.bfloat16, False)
    return [query, key, *tables, *others, *results]
