"""Experts whose counts of rows stay on the device: kernels against the definition in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.core.mixtures import options
from tests.gpu.expert_networks import BOUND, NETWORKS, results
from tests.gpu.memory import poison
from torchscale_fairseq.core.layers.experts import Experts
from torchscale_fairseq.core.layers.moe import MixtureOfExperts
from torchscale_fairseq.core.layers.router import LinearRouter
from torchscale_fairseq.core.ops.gating import gate
from torchscale_fairseq.core.parallel.groups import ExpertSplit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="no Hopper GPU"
    ),
]
CASES = [  # tokens, experts, width, inner width, routing
    (63, 4, 64, 96, {}),
    (500, 8, 264, 328, {"capacity_factor": None}),
    (500, 7, 64, 96, {"capacity_factor": 0.5, "top_k": 3, "prioritized": True}),
    (500, 7, 768, 1024, {"top_k": 1, "normalize_before_dropping": True}),
    (7, 40, 64, 96, {}),
    (1, 8, 64, 96, {}),
]


class GivenScores(nn.Module):
    """A router that returns its parameter, so that rounding of the tokens cannot change a choice."""

    def __init__(self, tokens: int, experts: int):
        super().__init__()
        scores = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(3)).bfloat16()
        self.scores = nn.Parameter(scores.double())

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.scores, None


def layer(tokens: int, experts: int, width: int, inner: int, network: str, routing: dict[str, Any]) -> MixtureOfExperts:
    torch.manual_seed(0)
    networks = Experts(ExpertSplit(experts), width, inner, dropout=0.0, eps=1e-5, **NETWORKS[network])
    for parameter in networks.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return MixtureOfExperts(GivenScores(tokens, experts), networks, options(use_fp32=True, **routing)).bfloat16()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_equal_the_definition(network: str, case: Any) -> None:
    tokens, experts, width, inner, routing = case
    module = layer(tokens, experts, width, inner, network, routing)
    x = torch.randn(1, tokens, width).bfloat16()
    exact = layer(tokens, experts, width, inner, network, routing).double()
    exact.load_state_dict({name: value.double() for name, value in module.state_dict().items()})
    expected = results(exact, x.double())
    module, x = module.cuda(), x.cuda()
    poison()
    found = results(module, x)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        error = (found[name].cpu().double() - wanted).norm() / wanted.norm().clamp(min=1e-9)
        assert error < BOUND, f"{name}: relative RMS error {error}"


@pytest.mark.parametrize("activation", [F.gelu, F.relu, F.silu])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gates(dtype: torch.dtype, activation: Any) -> None:
    inputs = [torch.randn(63, 67, device="cuda", dtype=dtype).requires_grad_() for _ in range(2)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    poison()
    found, expected = gate(activation, *inputs), activation(exact[0]) * exact[1]
    gradients = torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(expected.sum(), exact)
    for actual, wanted in zip((found, *gradients[0]), (expected, *gradients[1]), strict=True):
        assert (actual.double() - wanted).norm() / wanted.norm() < BOUND


@pytest.mark.parametrize("network", ["gated", "SubLN"])
def test_the_host_never_waits(network: str) -> None:
    module = layer(500, 8, 64, 96, network, {}).cuda()
    x = torch.randn(1, 500, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    module(x)[0].sum().backward()  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        y, report = module(x)
        (y.sum() + report.balance_loss + report.z_loss).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_recorded_as_a_graph() -> None:
    """A CUDA graph of forward and backward, replayed with tokens that go to other experts."""
    module = layer(500, 8, 64, 96, "SubLN", {}).cuda()
    module.gate = LinearRouter(64, 8).cuda().bfloat16()
    x = torch.randn(1, 500, 64, device="cuda", dtype=torch.bfloat16)
    for _ in range(2):
        results(module, x)
    module.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = results(module, x)
    x.copy_(torch.randn_like(x))
    graph.replay()
    module.zero_grad()
    for name, wanted in results(module, x).items():
        assert torch.allclose(recorded[name].float(), wanted.float(), atol=1e-2, rtol=1e-2), name


@pytest.mark.parametrize("network", ["gated", "SubLN"])
def test_compiled_in_one_graph(network: str) -> None:
    module = layer(500, 8, 64, 96, network, {}).cuda()
    x = torch.randn(1, 500, 64, device="cuda", dtype=torch.bfloat16)
    expected = results(module, x)
    module.zero_grad()
    module.compile(fullgraph=True)
    for name, found in results(module, x).items():
        error = (found.float() - expected[name].float()).norm() / expected[name].float().norm()
        assert error < BOUND, f"{name}: relative RMS error {error}"
