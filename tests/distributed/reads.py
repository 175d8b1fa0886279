"""What the host reads of values that it would have to wait for on a GPU."""

import traceback
from collections.abc import Iterable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
READING = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default}


class Reads(TorchDispatchMode):
    """Within the block, ``found`` gets what the host reads of values that come from the weights or from other processes
    within the block. On a GPU it would wait for each.

    Args:
        weights: of a model.
    """

    def __init__(self, weights: Iterable[Tensor]):
        super().__init__()
        self.found: list[str] = []
        self._new: dict[int, Any] = {}
        for weight in weights:
            self._note(weight)
        self._patches = [mock.patch.object(Tensor, name, self._noting(name)) for name in ("tolist", "numpy")]

    def __enter__(self) -> Any:
        for patch in self._patches:
            patch.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for patch in self._patches:
            patch.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # the operations on its parts come here
        given = [leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
        new = any(map(self._is_new, given))
        if new and _reads(func, args, kwargs or {}):
            self.found.append(f"{func} {_caller()}")
        result = func(*args, **(kwargs or {}))
        received = func.namespace == "c10d"
        if new or received:
            changed = given if received or func._schema.is_mutable else []
            for tensor in [*changed, *tree_leaves(result)]:
                if torch.is_tensor(tensor):
                    self._note(tensor)
        return result

    def _noting(self, name: str) -> Any:
        stock = getattr(Tensor, name)

        def read(tensor: Tensor, *options: Any, **more: Any) -> Any:
            if self._is_new(tensor):
                self.found.append(f"{name} {_caller()}")
            return stock(tensor, *options, **more)

        return read

    def _note(self, tensor: Tensor) -> None:
        storage = _local(tensor).untyped_storage()
        self._new[storage._cdata] = storage  # kept, so that no other gets its number

    def _is_new(self, tensor: Tensor) -> bool:
        return _local(tensor).untyped_storage()._cdata in self._new


def _reads(func: Any, args: Any, options: Any) -> bool:
    """Whether the host has a value, or a size that depends on values, after an operation."""
    if func == aten.index.Tensor:
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    if func == aten.repeat_interleave.Tensor:
        return options.get("output_size") is None
    return func in READING


def _caller() -> str:
    """The line of this package or of fairseq that runs, for those who read a failure."""
    frames = [frame for frame in traceback.extract_stack() if "fairseq" in frame.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
