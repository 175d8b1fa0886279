"""Groups of processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def padding_to_multiple_of(n: int, mult: int) -> int:
    """How much to add to n for a multiple of mult."""
    return -n % mult


def get_data_parallel_group() -> Any:
    """All processes; None where there is one."""
    return dist.group.WORLD if dist.is_initialized() else None


def get_rank(group: Any) -> int:
    """This process in a group."""
    return dist.get_rank(group=group) if dist.is_initialized() else 0


def get_world_size(group: Any) -> int:
    """Processes in a group."""
    return dist.get_world_size(group=group) if dist.is_initialized() else 1


def get_data_parallel_rank() -> int:
    """This process among all."""
    return get_rank(get_data_parallel_group())


def get_data_parallel_world_size() -> int:
    """All processes."""
    return get_world_size(get_data_parallel_group())


class Allgather(torch.autograd.Function):
    """The tensors of all processes, joined along their second axis; gradients are summed and cut."""

    @staticmethod
    def forward(ctx: Any, input_: Tensor) -> Tensor:
        size = get_data_parallel_world_size()
        if size == 1:
            return input_.clone()
        parts = [torch.empty_like(input_) for _ in range(size)]
        dist.all_gather(parts, input_.contiguous())
        return torch.cat(parts, 1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        size, rank = get_data_parallel_world_size(), get_data_parallel_rank()
        if size == 1:
            return grad_output
        grad_output = grad_output.contiguous()
        dist.all_reduce(grad_output)
        return grad_output.chunk(size, 1)[rank].contiguous()


all_gather_func = Allgather.apply
