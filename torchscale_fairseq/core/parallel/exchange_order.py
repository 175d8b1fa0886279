"""The order of compiled code that exchanges tokens: gradients of weights, which no exchange needs, are computed while
tokens are on their way (``gathering.py``). Importing this takes seconds, as it imports torch's compiler."""

from pathlib import Path
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph, Node

_exchanges: Any = torch.ops._c10d_functional
BEGINNINGS = {_exchanges.all_gather_into_tensor.default, _exchanges.reduce_scatter_tensor.default}
WAIT = _exchanges.wait_tensor.default
PRODUCTS = {
    getattr(torch.ops.aten, name).default
    for name in ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm")
    if hasattr(torch.ops.aten, name)
}


class DeferProducts(CustomGraphPass):
    """Defers each matrix product that no exchange needs, and what depends on it, until just before the next wait, or
    the next operation that changes memory."""

    def __call__(self, graph: Graph) -> None:
        needed: set[Node] = set()
        """Nodes with an influence on rows that are exchanged."""
        for node in reversed(graph.nodes):
            if node.target in BEGINNINGS or not needed.isdisjoint(node.users):
                needed.add(node)
        deferred: dict[Node, None] = {}
        for node in list(graph.nodes):
            if node.target == WAIT or _changes_memory(node):
                for product in deferred:
                    node.prepend(product)
                deferred = {}
            elif node.op == "call_function" and node not in needed and _is_later(node, deferred):
                deferred[node] = None

    def uuid(self) -> Any:
        """Contents of this file, by which torch's caches of compiled code know the order."""
        return Path(__file__).read_bytes()


def _changes_memory(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_later(node: Node, deferred: dict[Node, None]) -> bool:
    return node.target in PRODUCTS or any(part in deferred for part in node.all_input_nodes)


def ordered() -> dict[str, Any]:
    """Options of ``torch.compile`` for code that begins to exchange tokens, does other work and then waits. torch 2.6
    leaves out the pass, which serves for grouped products that it does not have."""
    # to save memory, torch would move the work before the beginning or behind the wait
    return {"reorder_for_peak_memory": False, "post_grad_custom_post_pass": DeferProducts()}
