"""Copies between host and device for which the host does not wait."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LateCopy:
    """The values of a tensor on their way to the host."""

    on_host: Tensor
    """In the host's memory, once ``ready``."""
    ready: torch.cuda.Event | None

    def read(self) -> Tensor:
        """Wait until the values are there."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.on_host


def copy_late(tensor: Tensor) -> LateCopy:
    """Send the values of a tensor, which nobody may change from now on, to the host."""
    if not tensor.is_cuda:
        return LateCopy(tensor, None)
    on_host = tensor.to("cpu", non_blocking=True)  # pinned memory
    ready = torch.cuda.Event()
    ready.record()
    return LateCopy(on_host, ready)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. For a copy from memory that is not pinned the host would wait."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
