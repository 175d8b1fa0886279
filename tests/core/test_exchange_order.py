"""The order of compiled code that exchanges tokens."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tests.helpers import assert_close
from torchscale_fairseq.core.parallel.exchange_order import DeferProducts

exchanges: Any = torch.ops._c10d_functional
SIZES = (4, 3), (4, 2), (3, 2)


def send(rows: Tensor) -> Tensor:
    """Rows on their way; here to this process alone."""
    result: Tensor = exchanges.all_gather_into_tensor(rows, 1, "everyone")
    return result


def wait(rows: Tensor) -> Tensor:
    result: Tensor = exchanges.wait_tensor(rows)
    return result


def backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As of a layer between two exchanges: gradients of tokens, of a weight in float32, and of one before."""
    gradient = wait(send(gradient))
    of_weight = (gradient.T @ x).double() / 2
    rows = wait(send(gradient @ weight))
    return rows, of_weight, rows.T @ x


def order(graph: torch.fx.Graph) -> list[str]:
    names = {"all_gather_into_tensor": "send", "wait_tensor": "wait", "mm": "product", "_to_copy": "cast", "div": "div"}
    found = [getattr(node.target, "__name__", "").split(".")[0] for node in graph.nodes if node.op == "call_function"]
    return [names[name] for name in found if name in names]


@pytest.fixture
def traced() -> torch.fx.GraphModule:
    with torch._subclasses.FakeTensorMode() as mode:
        arguments = [mode.from_tensor(torch.randn(size)) for size in SIZES]
        return make_fx(backward)(*arguments)


def test_products_that_no_exchange_needs_are_computed_during_one(traced: torch.fx.GraphModule) -> None:
    assert order(traced.graph) == ["send", "wait", "product", "cast", "div", "product", "send", "wait", "product"]
    DeferProducts()(traced.graph)
    traced.graph.lint()
    assert order(traced.graph) == ["send", "wait", "product", "send", "product", "cast", "div", "wait", "product"]


def test_values_stay(traced: torch.fx.GraphModule) -> None:
    arguments = [torch.randn(size, generator=torch.Generator().manual_seed(1)) for size in SIZES]
    DeferProducts()(traced.graph)
    for node in traced.graph.nodes:
        if node.target in (exchanges.all_gather_into_tensor.default, exchanges.wait_tensor.default):
            node.target, node.args = torch.ops.aten.clone.default, node.args[:1]  # of one process
    traced.recompile()
    gradient, x, weight = arguments
    rows = gradient @ weight
    for found, expected in zip(traced(*arguments), (rows, (gradient.T @ x).double() / 2, rows.T @ x), strict=True):
        assert_close(found, expected, "float32")
