"""Repairs of stock fairseq on a CPU, where it expects device names, buffers on a GPU and a process group."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from fairseq.distributed import utils as distributed_utils
from torch import Tensor


def flatten_half_precision_parameters_on_cpu(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``--fp16`` on the CPU requests the current CUDA device in order to name the flat float32 copy of the parameters,
    and fails; with ``--cpu`` on a machine with a GPU it gets a name under which no gradient is ever copied, and nothing
    is learned. On the CPU the copy now gets the name that fairseq looks for: None."""
    if "current_device" not in stock.__code__.co_names:
        return stock

    def build_fp32_params(cls: type, args: Any, params: Sequence[Tensor], flatten: bool = True) -> Any:
        if not flatten or any(parameter.device.type != "cpu" for parameter in params):
            return stock(cls, args, params, flatten=flatten)
        flat = torch.nn.Parameter(torch.cat([parameter.detach().float().reshape(-1) for parameter in params]))
        flat.grad = torch.zeros_like(flat)
        return {None: flat}

    return build_fp32_params


def wrap_cpu_models_without_device_ids(stock: type) -> type:
    """The default ``--ddp-backend pytorch_ddp`` passes a device id, which torch refuses for a model on the CPU."""

    class DistributedDataParallel(stock):
        def __init__(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
            if all(parameter.device.type == "cpu" for parameter in module.parameters()):
                kwargs.update(device_ids=None, output_device=None)
            super().__init__(module, *args, **kwargs)

    return DistributedDataParallel


def gather_objects_over_gloo(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Gathering statistics that cannot be summed, in fairseq-validate and for some criterions, goes through a
    CUDA buffer and fails on the CPU."""

    def all_gather_list(data: Any, group: Any = None, max_size: int = 16384) -> Any:
        group = distributed_utils.get_global_group() if group is None else group
        if distributed_utils.use_xla() or dist.get_backend(group) != "gloo":
            return stock(data, group, max_size)
        gathered = [None] * dist.get_world_size(group)
        dist.all_gather_object(gathered, data, group)
        return gathered

    return all_gather_list


def rank_zero_in_one_process(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``get_data_parallel_rank()`` raises ``ValueError`` in a run of one process, though its sibling for the
    world size answers 1; TorchScale's models call it. It now answers 0."""

    def get_rank(group: Any) -> Any:
        if group is None and not distributed_utils.use_xla() and not dist.is_initialized():
            return 0
        return stock(group)

    return get_rank
