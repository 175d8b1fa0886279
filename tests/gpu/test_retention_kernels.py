"""The kernel of the norm and gate that follow retention equals the definition in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.gpu.memory import poison
from torchscale_fairseq.core.ops.gating import normalised_gate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SHAPES = [(2, 63, 3, 32), (1, 500, 8, 256), (3, 1, 2, 20), (1, 77, 1, 432)]
BOUND = 1e-2
"""Relative RMS error of bfloat16, which is rounded once on each way."""


def tensors(shape: tuple[int, ...], count: int) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    return [torch.randn(shape, generator=generator, device="cuda").bfloat16() for _ in range(count)]


def assert_equal(form: Callable[..., Tensor], inputs: list[Tensor], gradient: Tensor) -> None:
    """Output and gradients in bfloat16 and in float64."""
    poison()
    found: list[Tensor] = []
    exact: list[Tensor] = []
    for results, dtype in ((found, torch.bfloat16), (exact, torch.float64)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        output = form(*leaves)
        results += [output.detach(), *torch.autograd.grad(output, leaves, gradient.to(output.dtype))]
    for actual, expected in zip(found, exact, strict=True):
        assert ((actual.double() - expected).norm() / expected.norm()).item() < BOUND


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_and_gate(shape: tuple[int, ...]) -> None:
    heads, x, gradient = tensors(shape, 3)
    assert_equal(lambda a, b: normalised_gate(a, b, 1e-3), [x.flatten(2), heads], gradient.flatten(2))
