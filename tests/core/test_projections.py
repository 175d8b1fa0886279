"""Products of one input with several weights: torch's values and gradients, with fewer sums."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tests.core.models import retnet, tokens
from tests.helpers import assert_close
from torchscale_fairseq.core.layers import linear
from torchscale_fairseq.core.layers.linear import projected
from torchscale_fairseq.core.ops.projections import projections


def drawn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def by_torch(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    return tuple(F.linear(x, weight) for weight in weights)


@pytest.mark.parametrize("frozen", [(), (0,), (2,), (1, 3)], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 6), (7, 6), (6,), (2, 0, 6)], ids=str)
def test_equal_those_of_torch(shape: tuple[int, ...], frozen: tuple[int, ...]) -> None:
    """The input is the first tensor; it lies in memory as a part of a wider one."""
    leaves = [drawn(*shape[:-1], 9)[..., 1:7], drawn(4, 6), drawn(3, 6).t().contiguous().t(), drawn(8, 6)]
    results = []
    for form in (projections, by_torch):
        given = [x.detach().requires_grad_(i not in frozen) for i, x in enumerate(leaves)]
        outputs = form(*given)
        # the second output's gradient has one number in memory, and the third output has none
        (outputs[0].square().sum() + outputs[1].sum()).backward()
        results.append([*outputs, *(x.grad for x in given)])
    for found, expected in zip(*results, strict=True):
        if expected is None or found is None:
            assert expected is None and (found is None or not found.any())
        else:
            assert_close(found, expected, "float64")


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Quantized(Tensor):
    """A weight that has a product of its own, and no others."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.mm, torch.Tensor.t)
        return super().__torch_function__(func, types, args, kwargs or {})


def quantized() -> nn.Module:
    layer = nn.Linear(4, 3, bias=False)
    layer.weight = nn.Parameter(torch.randn(3, 4).as_subclass(Quantized))
    return layer


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda _, __, output: 3 * output)
    return layer


def with_forward_of_its_own() -> nn.Module:
    layer = nn.Linear(4, 3, bias=False)
    vars(layer)["forward"] = lambda x: 3 * F.linear(x, layer.weight)
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(4, 3),
        with_forward_of_its_own,
        lambda: Doubled(4, 3, bias=False),
        lambda: hooked(nn.Linear(4, 3, bias=False)),
        lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3, bias=False)),
        nn.Identity,
        quantized,
    ],
    ids=["bias", "forward of its own", "subclass", "hook", "parametrization", "no layer", "weight of another kind"],
)
def test_layers_that_do_more_are_called(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_trains_eagerly", lambda _: True)
    plain, other, x = nn.Linear(4, 3, bias=False), make(), torch.randn(2, 4)
    for found, layer in zip(projected(x, plain, other), (plain, other), strict=True):
        assert torch.equal(found, layer(x))


def test_hooks_of_all_modules_see_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_trains_eagerly", lambda _: True)
    layers, seen = [nn.Linear(4, 3, bias=False) for _ in range(2)], []
    hook = nn.modules.module.register_module_forward_hook(lambda layer, *_: seen.append(layer))
    try:
        projected(torch.randn(2, 4), *layers)
    finally:
        hook.remove()
    assert seen == layers


def test_layers_of_another_dtype_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_trains_eagerly", lambda _: True)
    with pytest.raises(RuntimeError, match="dtype"):
        projected(torch.randn(2, 4), nn.Linear(4, 3, bias=False).double())


def test_gradients_of_a_retnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of layers that are called, in fewer sums: three fewer in a layer's retention and one fewer in its
    feed-forward network."""
    text, results, sums = tokens(2, 9), [], []
    for at_once in (False, True):
        monkeypatch.setattr(linear, "_trains_eagerly", lambda _, at_once=at_once: at_once)
        model = retnet()
        output = model(text)[0]
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            output.square().sum().backward()
        sums.append(sum(event.name in ("aten::add", "aten::add_") for event in recorded.events()))
        results.append([output.detach(), *(p.grad for p in model.parameters())])
    assert sums[0] - sums[1] == len(model.layers) * (3 + 1)
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, "float64")
