"""Experts of a few processes that gather all tokens."""

import pytest

pytest.importorskip("fairseq")

from tests.fairseq_cli import run_gloo

LAYER = """
import dataclasses
import torch
import torch.distributed as dist
from tests.core.mixtures import WIDTH, mixture
from tests.helpers import assert_close
from torchscale_fairseq.core.parallel.gathering import equal_batches
from torchscale_fairseq.core.parallel.groups import splitting_experts

rank, processes = dist.get_rank(), dist.get_world_size()

def share_of(whole, **options):
    # the layer with this process's experts of a layer with all
    with splitting_experts():
        layer = mixture(whole.experts.split.count, split=True, **options)
    layer.load_state_dict(whole.state_dict())
    return layer.to(whole.gate.wg.weight.dtype)

def results(layer, x, weight, **options):
    # output, report and gradients of tokens, router and experts
    x = x.clone().requires_grad_()
    y, report = layer(x, **options)
    (y * weight).sum().add(report.balance_loss).backward()
    parameters = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return y.detach(), report, x.grad, parameters

def batches(dtype, length=7):
    generator = torch.Generator().manual_seed(5)
    x, weight = torch.randn(2, processes, 3, length, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    return x, weight
"""


@pytest.mark.parametrize("processes", [2, 4])
def test_equals_all_experts_in_one_process(processes: int) -> None:
    """Outputs, reports and all gradients, with one expert per process and more, with capacities and without."""
    code = """
for experts, options in [(8, {}), (4, {"capacity_factor": None}), (4, {"top_k": 1, "prioritized": True}),
                         (8, {"top_k": 3, "capacity_factor": 0.4}), (4, {"capacity_factor": None, "gated": True})]:
    whole = mixture(experts, **options).train()
    x, weight = batches(torch.float64)
    expected = [results(whole, *batch) for batch in zip(x, weight)]
    layer = share_of(whole, **options).train()
    with equal_batches():
        y, report, into_x, gradients = results(layer, x[rank], weight[rank])
    wanted = expected[rank]
    assert_close(y, wanted[0], "float64", "output")
    assert_close(into_x, wanted[2], "float64", "gradient of tokens")
    for name, figure in report.statistics.items():
        assert torch.equal(figure, wanted[1].statistics[name]), name
    split = layer.experts.split
    for name, gradient in gradients.items():
        wholes = whole.get_parameter(name).grad  # added up over all batches
        if name.startswith("experts."):
            wholes = wholes[split.first : split.first + split.local] / processes  # by Experts' hooks
        else:
            dist.all_reduce(gradient)
        assert_close(gradient, wholes, "float64", name)
"""
    run_gloo(processes, LAYER + code).check()


def test_the_host_reads_nothing() -> None:
    """Forward and backward, with a capacity and without; and the values are those of experts that count."""
    code = """
from tests.distributed.reads import Reads
from tests.expert_rows_on_cpu import keep_counts_on_device

for options in ({}, {"capacity_factor": None, "top_k": 3}, {"capacity_factor": 0.3}):
    layer = share_of(mixture(4, **options), **options).train()
    x, weight = batches(torch.float64)
    with equal_batches():
        expected = results(layer, x[rank], weight[rank])
        layer.zero_grad()
        with monkeypatch.context() as patched:
            keep_counts_on_device(lambda *member: patched.setattr(*member, raising=False))
            with Reads([*layer.parameters(), x]) as reads:
                found = results(layer, x[rank], weight[rank])
    assert not reads.found, reads.found
    assert_close(found[0], expected[0], "float64", "output")
    assert_close(found[2], expected[2], "float64", "gradient of tokens")
    for name, gradient in expected[3].items():
        assert_close(found[3][name], gradient, "float64", name)
"""
    run_gloo(2, LAYER + "import pytest\nmonkeypatch = pytest.MonkeyPatch()\n" + code).check()


def test_compiled_code_is_for_one_way() -> None:
    """Code for batches of one size, in one graph as far as nothing is read, and other code for others."""
    code = """
import pytest
from tests.expert_rows_on_cpu import keep_counts_on_device
from torchscale_fairseq.core.parallel import gathering

gathered, gather = [], gathering._all_gather
gathering._all_gather = lambda *arguments, **more: gathered.append(1) or gather(*arguments, **more)
keep_counts_on_device(lambda *member: pytest.MonkeyPatch().setattr(*member, raising=False))
x, weight = batches(torch.float64)
for fullgraph, ways in (True, [True]), (False, [True, False, True]):
    layer = share_of(mixture(4)).train()
    expected = results(layer, x[rank], weight[rank])
    layer.compile(fullgraph=fullgraph, backend="aot_eager")
    for equal in ways:
        layer.zero_grad()
        gathered.clear()
        with equal_batches(equal):
            found = results(layer, x[rank], weight[rank])
        assert bool(gathered) is equal
        assert_close(found[0], expected[0], "float64", "output")
        assert_close(found[2], expected[2], "float64", "gradient of tokens")
        for name, gradient in expected[3].items():
            assert_close(found[3][name], gradient, "float64", name)
"""
    run_gloo(2, LAYER + code).check()
