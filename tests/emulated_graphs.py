"""CUDA graphs on the CPU: a replay computes again what was computed when the graph was captured, from the same memory
and into the same memory. A capture computes nothing of use, and refuses to wait."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from torchscale_fairseq.hooks.training import masked_tokens, trainer

EMULATING = """
from torchscale_fairseq import plugin
plugin.register()
from tests.emulated_graphs import emulate
emulate()
"""
"""Code for processes of fairseq-train on the CPU, which then record updates; each replay prints a line."""


class EmulatedGraph:
    """In the place of torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    @torch.no_grad()
    def replay(self) -> None:
        """Compute again, and print a line."""
        print("replayed", flush=True)
        for function, args, kwargs, results in self.calls:
            again = function(*args, **kwargs)
            if function.namespace in ("c10d", "_c10d_functional"):
                _finish(again)
            for result, value in zip(pytree.tree_leaves(results), pytree.tree_leaves(again), strict=True):
                if isinstance(result, Tensor) and result.data_ptr() != value.data_ptr():
                    result.copy_(value)

    def pool(self) -> None:
        """None, as no memory is used twice here."""


def _finish(results: Any) -> None:
    """Wait for what processes exchange, of which an operation returned results."""
    for result in pytree.tree_leaves(results):
        if isinstance(result, torch.ScriptObject):
            result.wait()  # type: ignore[attr-defined]
        elif isinstance(result, Tensor):
            torch.ops._c10d_functional.wait_tensor(result)


class Capture(TorchDispatchMode):
    """Notes what is computed, and what memory held before it was changed."""

    def __init__(self, graph: EmulatedGraph):
        super().__init__()
        self.calls = graph.calls
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute as usual."""
        kwargs = kwargs or {}
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        for argument, given in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for changed in pytree.tree_leaves(given):
                    self.before.setdefault(changed.data_ptr(), (changed.detach(), changed.clone()))
        results = function(*args, **kwargs)
        if not function.is_view:
            parts = pytree.tree_map_only(Tensor, Tensor.detach, (args, kwargs, results))
            self.calls.append((function, *parts))
        return results


@contextmanager
def capturing(graph: EmulatedGraph, **_: Any) -> Iterator[None]:
    """In the place of torch.cuda.graph."""
    with torch.random.fork_rng(devices=[]), Capture(graph) as capture:
        yield
    for call in graph.calls:
        for result in pytree.tree_leaves(call[-1]):
            if isinstance(result, Tensor) and result.is_floating_point():
                result.fill_(torch.nan)
    for changed, value in capture.before.values():
        changed.copy_(value)


def emulate(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let trainers record updates on the CPU.

    Args:
        replace: takes an object, the name of a member and another member.
    """
    replace(torch.cuda, "CUDAGraph", EmulatedGraph)
    replace(torch.cuda, "graph", capturing)
    replace(trainer, "can_record", lambda *_: True)
    replace(masked_tokens, "DEVICES", ("cpu",))
