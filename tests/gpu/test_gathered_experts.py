"""Experts that two GPUs hold, and that gather the tokens of both."""

import pytest
import torch

pytest.importorskip("fairseq")

from tests.fairseq_cli import run_nccl
from tests.gpu.devices import visible

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.device_count() < 2 or torch.cuda.get_device_capability() < (9, 0),
        reason="fewer than two Hopper GPUs",
    ),
]
LAYERS = """
import torch
import torch.distributed as dist
from tests.core.mixtures import options
from tests.gpu.expert_networks import BOUND, NETWORKS, results
from torchscale_fairseq.core.layers.experts import Experts
from torchscale_fairseq.core.layers.moe import MixtureOfExperts
from torchscale_fairseq.core.layers.router import LinearRouter
from torchscale_fairseq.core.parallel.gathering import equal_batches
from torchscale_fairseq.core.parallel.groups import ExpertSplit, split_experts, splitting_experts

rank = dist.get_rank()
torch.manual_seed(0)
x = torch.randn(2, 1, 500, 64, device="cuda", dtype=torch.bfloat16)

def layer(split):
    experts = Experts(split, 64, 96, dropout=0.0, eps=1e-5, **NETWORKS[network])
    made = MixtureOfExperts(LinearRouter(64, 8), experts, options(use_fp32=True, **routing))
    return made.bfloat16().cuda().train()

def pair(whole):
    # a layer with all experts, and one with this process's
    with splitting_experts():
        split = split_experts(8)
    part = layer(split)
    part.load_state_dict(whole.state_dict())
    return part, slice(split.first, split.first + split.local)

def assert_near(found, wanted, name):
    error = (found.float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-9)
    assert error < BOUND, f"{name}: relative RMS error {error}"

whole = layer(ExpertSplit(8))
part, own = pair(whole)
"""
ROUTINGS = ["{}", "{'capacity_factor': None}", "{'capacity_factor': 0.5, 'top_k': 3}"]


def on_two_gpus(code: str, network: str, routing: str) -> None:
    given = f"network, routing = {network!r}, {routing}\n"
    assert run_nccl(2, given + LAYERS + code, environment=visible(2)).check().output.count("passed") == 2


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("network", ["SubLN", "gated", "SiLU, LayerNorm"])
def test_equal_all_experts_on_one_gpu(network: str, routing: str) -> None:
    """The second time, the host may not wait."""
    code = """
from tests.gpu.memory import poison
both = [results(whole, batch) for batch in x]  # gradients of parameters are added up
poison()
for mode in ("default", "error"):
    part.zero_grad()
    torch.cuda.set_sync_debug_mode(mode)
    with equal_batches():
        found = results(part, x[rank])
    torch.cuda.set_sync_debug_mode("default")
    assert_near(found["output"], both[rank]["output"], "output")
    assert_near(found["input"], both[rank]["input"], "input")
    for name in found.keys() - {"output", "input"}:
        gradient, wanted = found[name], both[1][name]
        if name.startswith("experts."):
            wanted = wanted[own] / 2
        else:
            dist.all_reduce(gradient)
        assert_near(gradient, wanted, name)
"""
    on_two_gpus(code, network, routing)


@pytest.mark.parametrize("routing", ROUTINGS[:2])
def test_recorded_as_a_graph(routing: str) -> None:
    """Replayed with tokens that go to other experts; between replays runs one that is not recorded."""
    code = """
with equal_batches():
    mine = x[rank].clone()
    for _ in range(3):
        results(part, mine)
    part.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        recorded = results(part, mine)
    for seed in range(3):
        torch.manual_seed(seed)
        mine.copy_(torch.randn(2, *mine.shape, device="cuda")[rank])
        graph.replay()
        found = {name: value.clone() for name, value in recorded.items()}
        part.zero_grad()
        for name, wanted in results(part, mine).items():
            assert_near(found[name], wanted, name)
"""
    on_two_gpus(code, "SubLN", routing)


@pytest.mark.parametrize("network", ["SubLN", "gated"])
def test_compiled_in_one_graph(network: str) -> None:
    code = """
with equal_batches():
    expected = results(part, x[rank])
    part.zero_grad()
    part.compile(fullgraph=True)
    for name, found in results(part, x[rank]).items():
        assert_near(found, expected[name], name)
"""
    on_two_gpus(code, network, "{}")
