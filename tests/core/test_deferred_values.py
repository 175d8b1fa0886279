"""Parameters on the meta device, whose values are drawn later: they equal those of an ordinary build."""

import copy
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import nn

from torchscale_fairseq.core.deferred_values import DeferredValues, draw_deferred
from torchscale_fairseq.core.parallel.expert_parameters import is_expert, mark_expert

CPU = torch.device("cpu")


M = TypeVar("M", bound=nn.Module)


def deferred(make: Callable[[], M], drawing_on: str = "cpu") -> M:
    """A module built with seed 1, on the meta device."""
    torch.manual_seed(1)
    with DeferredValues(drawing_on).building():
        module = make()
    assert all(parameter.is_meta for parameter in module.parameters())
    return module


class Copies(nn.Module):
    """Values that depend on those of other parameters, and on a part of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 5)
        self.b = copy.deepcopy(self.a)
        nn.init.normal_(self.a.weight)
        self.b.weight.data.mul_(2)
        self.b.bias.data[1:3] = self.a.bias.data[:2] + torch.ones(2)
        self.tied = self.a.weight
        self.orthogonal = nn.Parameter(torch.empty(4, 4))
        nn.init.orthogonal_(self.orthogonal)
        self.scalar = nn.Parameter(torch.tensor(0.5))


class Truncated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(7, 3))
        nn.init.trunc_normal_(self.table, std=0.02, a=-0.02, b=0.02)
        self.rest = nn.Linear(3, 3)


@pytest.mark.parametrize("make", [Copies, Truncated, lambda: nn.Embedding(6, 4, padding_idx=1)])
def test_values_are_those_of_an_ordinary_build(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(1)
    ordinary = make()
    next_number = torch.rand(1)
    module = deferred(make)
    assert torch.equal(torch.rand(1), next_number), "what is drawn afterwards is the same"
    draw_deferred(reversed(list(module.parameters())), CPU)
    for (name, expected), value in zip(ordinary.named_parameters(), module.parameters(), strict=True):
        assert torch.equal(value, expected), name


def test_shared_and_marked_parameters_stay_so() -> None:
    module = deferred(Copies)
    mark_expert(module.a.weight, True)
    draw_deferred(module.parameters(), CPU)
    assert module.tied is module.a.weight and is_expert(module.tied)


def test_values_for_another_device_depend_on_the_seed_alone() -> None:
    """The device is another one by name alone here."""
    one, two = (deferred(Truncated, "cuda") for _ in range(2))
    draw_deferred(one.parameters(), CPU)
    draw_deferred(two.rest.parameters(), CPU)
    assert torch.equal(two.rest.weight, one.rest.weight) and two.table.is_meta
    assert one.rest.weight.abs().max().item() <= 3**-0.5 and one.table.abs().max().item() <= 0.02
