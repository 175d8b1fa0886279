"""Gates give what torch's own operations give, and keep no more than their inputs."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers import assert_close, kept_for_backward
from torchscale_fairseq.core.ops.gating import gate, normalised_gate

activations = pytest.mark.parametrize("activation", [F.gelu, F.relu, F.silu], ids=lambda f: f.__name__)


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 5, 12, generator=generator).to(dtype).requires_grad_() for _ in range(2)]


def gradients(function: Callable[[Tensor, Tensor], Tensor], tensors: list[Tensor]) -> list[Tensor]:
    output = function(*tensors)
    return [output, *torch.autograd.grad((output * torch.linspace(-1, 1, 12)).sum(), tensors)]


def plain_normalised_gate(x: Tensor, y: Tensor) -> Tensor:
    return F.silu(x) * F.rms_norm(y.unflatten(-1, (3, 4)), (4,), eps=1e-3).flatten(-2)


def ours(x: Tensor, y: Tensor) -> Tensor:
    return normalised_gate(x, y.unflatten(-1, (3, 4)), 1e-3)


@activations
def test_gate(activation: Callable[[Tensor], Tensor]) -> None:
    tensors = inputs()
    expected = gradients(lambda x, y: activation(x) * y, tensors)
    for found, exact in zip(gradients(lambda x, y: gate(activation, x, y), tensors), expected, strict=True):
        assert_close(found, exact, "float64")


def test_normalised_gate() -> None:
    tensors = inputs()
    for found, exact in zip(gradients(ours, tensors), gradients(plain_normalised_gate, tensors), strict=True):
        assert_close(found, exact, "float64")


def test_normalised_gate_of_lower_precision() -> None:
    """The gate in bfloat16, heads in float32: as the output of retention is."""
    x, y = inputs(torch.bfloat16)[0], inputs(torch.float32)[1]
    found = gradients(ours, [x, y])
    assert [t.dtype for t in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    exact = gradients(plain_normalised_gate, [t.detach().double().requires_grad_() for t in (x, y)])
    for actual, expected in zip(found, exact, strict=True):
        assert_close(actual.double(), expected, "bfloat16")


@pytest.mark.parametrize("function", [ours, lambda x, y: gate(F.silu, x, y)], ids=["normalised", "plain"])
def test_inputs_alone_are_kept(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    with kept_for_backward() as kept:
        function(*inputs())
    assert sum(kept) == 2 * 2 * 5 * 12
