"""Copies of a process's slices in host memory, for checkpoints that are written while training goes on.

A GPU writes to pinned memory several times as fast as to ordinary memory, but pinning takes longer than copying. So the
memory is reserved once, in a thread that the training does not wait for, and every save uses it.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from torchscale_fairseq.core.parallel.fully_sharded import local_part


class HostCopies:
    """Room for copies of tensors, which a thread begins to reserve.

    Args:
        tensors: plain ones or DTensors. Their values do not matter yet.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._described = _described(tensors)
        rooms = {name: (local_part(tensor), tensor) for name, tensor in tensors.items()}
        thread = ThreadPoolExecutor(1)
        self._copies = thread.submit(lambda: {name: _room(*pair) for name, pair in rooms.items()})
        thread.shutdown(wait=False)

    def fit(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether tensors have the names, shapes and types of those for which there is room."""
        return _described(tensors) == self._described

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy tensors that fit. They may change when this returns.

        Returns:
            The copies, whose values the next call replaces.
        """
        copies = self._copies.result()
        for name, tensor in tensors.items():
            local_part(copies[name]).copy_(local_part(tensor), non_blocking=True)
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return copies


def _described(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (local_part(tensor).shape, tensor.dtype) for name, tensor in tensors.items()}


def _room(part: Tensor, tensor: Tensor) -> Tensor:
    """Memory of the host for a copy of a tensor of which this process holds a part."""
    with torch.cuda.device_of(part):
        room = torch.empty(part.shape, dtype=part.dtype, pin_memory=part.is_cuda)
    if not isinstance(tensor, DTensor):
        return room
    return DTensor(room, tensor._spec, requires_grad=False)  # from_local would move it to the mesh's device
