"""The kernels of GELU and LayerNorm against their definition in float64, alone and in a feed-forward network."""

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import assert_close, triple
from torchscale_fairseq.core.layers.feed_forward import FeedForwardNetwork
from torchscale_fairseq.core.ops.gelu_norm import gelu_norm, has_kernel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def gradients(inputs: list[Tensor], output: Tensor, weight: Tensor) -> list[Tensor]:
    """Of the sum of output times weight."""
    return list(torch.autograd.grad((output.double() * weight).sum(), inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (63, 500), (700, 3072), (300, 8192)])
def test_values_and_gradients(rows: int, width: int, dtype: torch.dtype) -> None:
    """Relative to the largest entry, since sums over rows are rounded once."""
    generator = torch.Generator("cuda").manual_seed(rows)
    given = [torch.randn(*shape, generator=generator, device="cuda") for shape in [(rows, width), *[(width,)] * 3]]
    along = torch.randn(rows, width, generator=generator, device="cuda").double()
    results = []
    for kind in (torch.float64, dtype):
        inputs = [t.to(dtype).to(kind).requires_grad_() for t in given]
        assert has_kernel(inputs[0], width) == (kind == dtype)
        output = gelu_norm(inputs[0], *triple(inputs[1:]), 1e-5)
        results.append([output.detach(), *gradients(inputs, output, along)])
    for exact, found in zip(*results, strict=True):
        scale = exact.abs().max()
        assert_close(found.double() / scale, exact / scale, str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("compiled", [False, True])
def test_in_a_network(compiled: bool) -> None:
    """With dropout in training the kernel is left out, and values are those of the modules one by one."""
    torch.manual_seed(1)
    network = FeedForwardNetwork(64, 256, inner_norm=nn.LayerNorm(256)).cuda()
    x = torch.randn(3, 50, 64, device="cuda")
    exact = network.double()(x.double())
    half = network.bfloat16()
    call = torch.compile(half, fullgraph=True) if compiled else half
    assert_close(call(x.bfloat16()).double(), exact, "bfloat16")
    half.activation_dropout.p = 0.5
    assert not half._is_plain
    half.eval()
    assert half._is_plain
