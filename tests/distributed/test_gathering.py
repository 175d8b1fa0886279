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


ORDER = """
from torch.profiler import ProfilerActivity, profile

NAMES = {
    "_c10d_functional::all_gather_into_tensor": "gather",
    "_c10d_functional::reduce_scatter_tensor": "sum",
    "_c10d_functional::wait_tensor": "wait",
    "aten::mm": "router",
    "aten::addmm": "router",
    "aten::square": "report",
    "aten::bmm": "experts",
}

def order(call):
    # the operations of a call, and its result
    with profile(activities=[ProfilerActivity.CPU]) as found:
        result = call()
    events = sorted(found.events(), key=lambda event: event.time_range.start)
    return [NAMES[event.name] for event in events if event.name in NAMES], result
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
            wholes = wholes[split.first : split.first + split.local] / processes
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

keep_counts_on_device(lambda *member: pytest.MonkeyPatch().setattr(*member, raising=False))
x, weight = batches(torch.float64)
for fullgraph, ways in (True, [True]), (False, [True, False, True]):
    layer = share_of(mixture(4)).train()
    expected = results(layer, x[rank], weight[rank])
    layer.compile(fullgraph=fullgraph, backend="aot_eager")
    for equal in ways:
        layer.zero_grad()
        with equal_batches(equal):
            operations, found = order(lambda: results(layer, x[rank], weight[rank]))
        assert ("gather" in operations) is equal
        assert_close(found[0], expected[0], "float64", "output")
        assert_close(found[2], expected[2], "float64", "gradient of tokens")
        for name, gradient in expected[3].items():
            assert_close(found[3][name], gradient, "float64", name)
"""
    run_gloo(2, LAYER + ORDER + code).check()


def test_rows_are_on_their_way_while_the_router_computes() -> None:
    """Tokens while they are routed, outputs while that is reported, and the gradient of tokens while the router's are
    computed."""
    code = """
from tests.expert_rows_on_cpu import keep_counts_on_device

keep_counts_on_device()
layer = share_of(mixture(4)).train()
x, weight = batches(torch.float64)
with equal_batches():
    found, _ = order(lambda: results(layer, x[rank], weight[rank]))
experts = ["experts"] * 2
forward = ["gather", "router", "wait", "gather", "wait", *experts, "sum", "report", "wait"]
backward = ["gather", "wait", *experts, *experts, "sum", "sum", "wait", "router", "router", "wait"]
assert found == [*forward, *backward], found
"""
    run_gloo(2, LAYER + ORDER + code).check()


@pytest.mark.slow
@pytest.mark.parametrize("time_first", [False, True])
def test_compiled_code_keeps_the_order(time_first: bool) -> None:
    code = (
        f"""
from tests.expert_rows_on_cpu import keep_counts_on_device
from torchscale_fairseq.core.architectures.layer_sequence import LayerSequence

keep_counts_on_device()
torch._inductor.config.cpp.simdlen = 1  # torch 2.6 cannot write vectors
layer = share_of(mixture(4)).train()
layer.time_first = {time_first}
"""
        + """
x, weight = batches(torch.float64, 100)
with equal_batches():
    expected = results(layer, x[rank], weight[rank])
    LayerSequence([layer]).compile_layers(together=False)
    for _ in range(2):
        layer.zero_grad()  # new gradients, not added to those above
        found, computed = order(lambda: results(layer, x[rank], weight[rank]))
experts = ["experts"] * 2
forward = ["gather", "router", "wait", "gather", "wait", *experts, "sum", "wait"]
backward = ["sum", "sum", *experts, "wait"]  # weights' gradients while tokens' are on their way
if not hasattr(torch, "_grouped_mm"):  # torch 2.6, which has no grouped product, and compiles without our order
    backward = [*experts, "sum", "sum", "wait"]
assert found == [*forward, "gather", "wait", *experts, *backward, "router", "wait", "router"], found
assert_close(computed[0], expected[0], "float64", "output")
assert_close(computed[2], expected[2], "float64", "gradient of tokens")
for name, gradient in expected[3].items():
    assert_close(computed[3][name], gradient, "float64", name)
"""
    )
    run_gloo(2, LAYER + ORDER + code, timeout=500).check()


def test_whatever_begins_is_waited_for() -> None:
    """Also if layers are computed again for the backward pass, or tokens need no gradient. A batch that fails has no
    part in the next."""
    code = """
from torch.utils.checkpoint import checkpoint
from tests.expert_rows_on_cpu import keep_counts_on_device

keep_counts_on_device()
layer = share_of(mixture(4)).train()
x, weight = batches(torch.float64)

def recomputed(tokens):
    return checkpoint(layer, tokens, use_reentrant=False)

def fails(tokens):
    raise ValueError("this batch")

def update(call, tokens):
    layer.zero_grad()
    y, report = call(tokens)
    (y * weight[rank]).sum().add(report.balance_loss).backward()
    return y.detach(), layer.gate.wg.weight.grad

def compare(found, expected):
    for ours, theirs, name in zip(found, expected, ("output", "gradient of the router")):
        assert_close(ours, theirs, "float64", name)

tokens = x[rank].clone().requires_grad_()
with equal_batches():
    expected = update(layer, tokens)
    for call, given in [(layer, tokens), (layer, tokens.detach()), (recomputed, tokens)]:
        found, computed = order(lambda: update(call, given))
        assert found.count("gather") + found.count("sum") == found.count("wait"), found
        compare(computed, expected)
    with torch.no_grad():
        found, (output, _) = order(lambda: layer(tokens))
    assert found.count("gather") + found.count("sum") == found.count("wait"), found
    assert_close(output, expected[0], "float64", "output")
    router, layer.gate.forward = layer.gate.forward, fails
    try:
        layer(tokens)
    except ValueError:
        layer.gate.forward = router
    compare(update(layer, tokens), expected)
"""
    run_gloo(2, LAYER + ORDER + code).check()


def test_gates_of_every_type_are_gathered() -> None:
    """An odd number of them."""
    code = """
from torchscale_fairseq.core.ops.routing import route
from torchscale_fairseq.core.parallel.gathering import begin_gather, gather_choices
from torchscale_fairseq.core.parallel.groups import ExpertSplit

split = ExpertSplit(4, rank=rank, size=2)
for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
    for k in (1, 3):
        routings = [route(torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)).to(dtype), top_k=k)
                    for seed in range(2)]
        tokens = begin_gather(torch.full((5, 2), rank, dtype=dtype), split)
        everyones, choices = gather_choices(tokens, routings[rank], split)
        assert everyones[:, 0].tolist() == [0] * 5 + [1] * 5
        assert torch.equal(choices.gate, torch.cat([routing.gate for routing in routings]))
"""
    run_gloo(2, LAYER + code).check()
