"""Fully sharded data parallelism: each process holds a slice of every parameter, of its gradient and of what an
optimizer keeps for it, and gathers a layer when the layer computes.

The engine is PyTorch's FSDP2 (``torch.distributed.fsdp.fully_shard``; the idea is ZeRO stage 3, arXiv:1910.02054).
Here stands which modules are gathered together, and how optimizers that know nothing of it update the slices.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.overrides import TorchFunctionMode

from ..deferred_values import allocate_deferred, draw_deferred
from ..option_error import OptionError
from .expert_parameters import is_expert
from .groups import ExpertSplit, replica_group

MARKS = ("expert", "param_group", "optim_overrides")
"""Attributes by which optimizers and clipping tell parameters apart, and which slices keep."""
LAYERS = "layers"
"""The name of module lists whose members are gathered one at a time."""


@dataclass(frozen=True)
class ShardingOptions:
    """How a model is sharded."""

    device: torch.device
    """Where the model computes."""
    shard_size: int = 0
    """Processes that hold a model together; there are replicas of it between them and others. 0: all processes."""
    compute_dtype: torch.dtype | None = None
    """Dtype of gathered parameters, and so of the computation; None: that of the parameters."""
    reduce_dtype: torch.dtype | None = None
    """In which gradients are summed over processes; None: ``compute_dtype``."""
    reshard_after_forward: bool = True
    """Free gathered parameters until the backward pass (ZeRO stage 3), or keep them until its end (stage 2)."""
    cpu_offload: bool = False
    """Keep slices, and so the optimizer's states, in host memory."""

    @property
    def precision(self) -> MixedPrecisionPolicy:
        """Inputs keep their types: whoever calls the model converts them."""
        return MixedPrecisionPolicy(self.compute_dtype, self.reduce_dtype, cast_forward_inputs=False)

    @property
    def keeps_gradients_whole(self) -> bool:
        """Whether gradients of several batches are added up before processes sum them: where gathered parameters are
        kept too, and not in half precision, in which small gradients would be lost."""
        half = self.compute_dtype is not None and self.reduce_dtype != torch.float32
        return not self.reshard_after_forward and not half

    @property
    def offload(self) -> OffloadPolicy:
        """Memory that is pinned serves copies to a GPU alone."""
        return CPUOffloadPolicy(pin_memory=self.device.type != "cpu") if self.cpu_offload else OffloadPolicy()


def data_mesh(device_type: str, shard_size: int) -> DeviceMesh:
    """All processes: those that shard one copy of a model are neighbours, ``shard_size`` of them (0: all).

    Raises:
        OptionError: shard_size does not divide the number of processes.
    """
    processes = dist.get_world_size()
    if shard_size < 0 or (shard_size and processes % shard_size):
        divisors = [n for n in range(2, processes) if processes % n == 0]
        raise OptionError(
            "fsdp_shard_size",
            shard_size,
            f"{{fsdp_shard_size()}} must divide the number of processes ({processes})",
            [*({"fsdp_shard_size": n} for n in divisors), {"fsdp_shard_size": None}],
        )
    if shard_size in (0, processes):
        return init_device_mesh(device_type, (processes,), mesh_dim_names=("shard",))
    shape = (processes // shard_size, shard_size)
    return init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard"))


def shard_model(model: nn.Module, options: ShardingOptions) -> None:
    """Shard a model in place; all processes call it together, with the same parameters. Each layer is gathered when it
    is called, all that belongs to no layer when the model is. Experts that other processes do not hold stay whole;
    those with replicas are sharded among these.

    Args:
        model: its parameters become DTensors. Those built by ``DeferredValues`` get their values a layer at a time.
        options: how. Scalars stay as they are: ``LocalParameters`` averages their gradients.
    """
    mesh = data_mesh(options.device.type, options.shard_size)
    marks = {name: _marks(parameter) for name, parameter in model.named_parameters()}
    common: dict[str, Any] = {
        "mp_policy": options.precision,
        "offload_policy": options.offload,
        "reshard_after_forward": options.reshard_after_forward,
    }
    for experts in list(model.modules()):
        if not isinstance(experts, HoldsExperts) or experts.split.processes == 1:
            continue
        split = experts.split
        mesh_of_experts = DeviceMesh.from_group(replica_group(split), options.device.type)
        draw_deferred(experts.parameters(), options.device)
        fully_shard(experts, mesh=mesh_of_experts, shard_placement_fn=_evenly(mesh_of_experts.size()), **common)
        for parameter in experts.parameters():
            parameter.gradient_factor = split.replicas  # type: ignore[attr-defined]
    common["ignored_params"] = {p for p in model.parameters() if p.dim() == 0}
    for layer in _layers(model):
        draw_deferred(layer.parameters(), options.device)
        fully_shard(layer, mesh=mesh, **common)
    draw_deferred(model.parameters(), options.device)
    # what belongs to no layer is needed at once in the backward pass, and criterions read it after the forward pass
    fully_shard(model, mesh=mesh, **{**common, "reshard_after_forward": False})
    for name, parameter in model.named_parameters():  # new ones
        parameter.__dict__.update(marks[name])
    for parameter in common["ignored_params"]:
        parameter.data = parameter.data.to(options.device)
    for module in model.modules():
        if hasattr(module, "set_reduce_scatter_unused_params"):  # torch 2.12 and later
            module.set_reduce_scatter_unused_params(True, recurse=False)  # type: ignore[operator]


def shard_layers(model: nn.Module, device: torch.device) -> None:
    """Shard the layers of a model that is evaluated, in place; all processes call it together, and then compute the
    same batches, since each layer is gathered when it is called. All that belongs to no layer stays whole: generators
    call parts of a model without the model itself.

    Args:
        model: values of parameters that were built by ``DeferredValues`` are anything: the caller fills them.
        device: on which the model computes.
    """
    mesh = data_mesh(device.type, shard_size=0)
    scalars = {parameter for parameter in model.parameters() if parameter.dim() == 0}
    for layer in _layers(model):
        allocate_deferred(layer.parameters(), device)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
    allocate_deferred(model.parameters(), device)
    model.to(device)


def _marks(parameter: nn.Parameter) -> dict[str, Any]:
    return {mark: getattr(parameter, mark) for mark in MARKS if hasattr(parameter, mark)}


@contextmanager
def gradients_kept_whole(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, backward passes of sharded modules leave gradients whole in each process; the next one after it
    sums them over processes."""
    sharded = [module for module in modules if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        for module in sharded:
            module.set_requires_gradient_sync(True)


@runtime_checkable
class HoldsExperts(Protocol):
    """A module with some of the experts of a layer, and all that belongs to these (``layers.experts.Experts``)."""

    split: ExpertSplit
    gradient_root: bool

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of any module."""


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == LAYERS:
            yield from module


def _evenly(processes: int) -> Callable[[nn.Parameter], Shard]:
    """The axis along which a stack of experts is cut: the first that ``processes`` divide, after that of experts."""

    def placement(parameter: nn.Parameter) -> Shard:
        axes = (axis for axis in range(1, parameter.dim()) if parameter.size(axis) % processes == 0)
        return Shard(next(axes, 0))

    return placement


class LocalParameters:
    """The slices of a sharded model as plain parameters, for optimizers that work entry by entry. They share memory
    with the model's; so do their gradients, once ``take_gradients`` has been called.

    A slice has its parameter's marks.

    Args:
        parameters: of a sharded model, in order.
    """

    def __init__(self, parameters: Iterator[nn.Parameter]):
        self.sharded = [p for p in parameters if p.requires_grad]
        self.local = [self._alias(p) for p in self.sharded]

    def _alias(self, parameter: nn.Parameter) -> nn.Parameter:
        alias = nn.Parameter(local_part(parameter.data))
        alias.copies = copies(parameter)  # type: ignore[attr-defined]
        alias.__dict__.update(_marks(parameter))
        return alias

    @staticmethod
    def copies_of(parameter: Tensor) -> int | None:
        """The number of processes that hold the same slice as this one; None for anything but a slice."""
        found: int | None = getattr(parameter, "copies", None)
        return found

    def take_gradients(self) -> None:
        """Move the gradients of the model's parameters to the slices; all processes call it together."""
        self._average_scalars()
        for parameter, alias in zip(self.sharded, self.local, strict=True):
            alias.grad = None if parameter.grad is None else local_part(parameter.grad)
            parameter.grad = None
            factor = getattr(parameter, "gradient_factor", 1)
            if alias.grad is not None and factor != 1:
                alias.grad *= factor

    @torch.no_grad()
    def _average_scalars(self) -> None:
        scalars = [p for p in self.sharded if not isinstance(p, DTensor)]
        if not scalars:
            return
        gradients = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in scalars])
        dist.all_reduce(gradients)
        for parameter, gradient in zip(scalars, gradients / dist.get_world_size(), strict=True):
            parameter.grad = gradient.clone()

    def spread(self, index: int, part: Tensor, split: ExpertSplit | None = None) -> Tensor:
        """A tensor of the shape of slice ``index`` as a part of one of its parameter's shape.

        Args:
            index: of the parameter.
            part: this process's; one of another shape is returned as it is.
            split: as a part of the stack of all experts, if the parameter is one of experts held like this.
        """
        parameter = self.sharded[index]
        if not isinstance(parameter, DTensor) or part.shape != self.local[index].shape:
            return part
        if split is not None and is_expert(parameter):
            return _part_of_stack(part, parameter, split)
        return DTensor.from_local(
            part,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )


def _part_of_stack(part: Tensor, parameter: DTensor, split: ExpertSplit) -> DTensor:
    """Experts of this process, (local experts, ...), sharded like a parameter among their replicas, as a part of
    (experts, ...)."""
    (placement,), replicas = parameter.placements, parameter.device_mesh
    if placement.is_shard(0) and split.replicas > 1:  # too small to be cut evenly: one replica has it all
        part = DTensor.from_local(part, replicas, [placement], run_check=False).full_tensor()
        placement = Replicate()
    if split.replicas == 1:
        placement = Replicate()
    mesh = _mesh_of_experts((split.replicas, split.size), replicas.device_type)
    shape = torch.Size((split.count, *parameter.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, mesh, [placement, Shard(0)], run_check=False, shape=shape, stride=stride)


@cache
def _mesh_of_experts(replicas_and_size: tuple[int, int], device_type: str) -> DeviceMesh:
    """All processes: replicas of sets of experts, and within a set the processes that hold it together."""
    replicas, size = replicas_and_size
    return init_device_mesh(device_type, (replicas, size), mesh_dim_names=("replicas", "experts"))


def unbind_experts(stack: Tensor) -> Sequence[Tensor]:
    """The experts of a stack (experts, ...), which may be sharded."""
    if not isinstance(stack, DTensor):
        return stack.unbind(0)
    placement, mesh = stack.placements[0], stack.device_mesh
    if mesh.size() == 1:
        return stack.to_local().unbind(0)
    if not isinstance(placement, Shard) or placement.dim == 0:
        return stack.full_tensor().unbind(0)
    shape, stride = stack.shape[1:], stack.stride()[1:]
    moved = [Shard(placement.dim - 1)]
    parts = stack.to_local().unbind(0)
    return [DTensor.from_local(p, mesh, moved, run_check=False, shape=shape, stride=stride) for p in parts]


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(whole: Tensor, like: DTensor) -> Tensor:
    """The part that this process holds of a tensor sharded like another one; processes that hold it whole each cut
    their own."""
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()


class CuttingCopies(TorchFunctionMode):
    """Meanwhile, copying a whole tensor into a sharded one copies this process's part of it, as a state dict of whole
    tensors that is loaded into a sharded model needs. DTensor itself refuses it where an axis is short."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.copy_ and isinstance(args[0], DTensor) and not isinstance(args[1], DTensor):
            args[0].to_local().copy_(part_like(args[1], args[0]))
            return args[0]
        return func(*args, **(kwargs or {}))


def copies(tensor: Tensor) -> int:
    """How many processes hold the same part of a tensor as this one."""
    if not isinstance(tensor, DTensor):
        return dist.get_world_size()
    parts = 1
    for axis, placement in enumerate(tensor.placements):
        parts *= tensor.device_mesh.size(axis) if placement.is_shard() else 1
    return tensor.device_mesh.size() // parts
