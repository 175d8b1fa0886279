"""Parameters that take memory only when they are needed: a model is built on the meta device, and the operations that
give its parameters their initial values are kept, to be repeated for some of them at a time.

With the values that the ordinary build draws, a process passes its random numbers on as if it had drawn them, and
repeats a drawing from where its generator stood. (The idea of repeating operations is that of torchdistX's deferred
initialisation.)
"""

import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
MAPPED = 2**20
"""Bytes from which values in host memory get a mapping of their own, which returns to the system when it is freed;
malloc would keep it, and keep as much as the whole model in the end."""
WHOLE = (nn.init.trunc_normal_, nn.init.orthogonal_)
"""Functions that may look at what they draw, and so do nothing on the meta device; each is kept as one operation."""
OVERWRITING = (aten.uniform_.default, aten.normal_.default, aten.zero_.default, aten.fill_.Scalar)
"""Operations after which nothing is left of the values before."""


@dataclass(frozen=True)
class _Values:
    """Values of a storage, as what has happened to it."""

    begin: Callable[[torch.device], Tensor]
    """Makes the storage as it was first."""
    steps: tuple["_Step", ...] = ()

    @torch.no_grad()
    def make(self, device: torch.device) -> Tensor:
        """The storage as a tensor with one axis."""
        storage = self.begin(device)
        for step in self.steps:
            step.repeat(storage)
        return storage


class _View(NamedTuple):
    """A tensor among the arguments of an operation, as a part of a storage."""

    values: _Values | None
    """None: of the storage that the operation changes."""
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def of(self, storage: Tensor) -> Tensor:
        """The tensor."""
        return storage.as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True)
class _Step:
    """An operation on meta tensors."""

    operation: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    draw: Callable[[torch.device], Generator] | None
    """Returns the generator of a random operation."""

    def repeat(self, storage: Tensor) -> Any:
        """Run the operation on a storage that it changes, or which says where a new one is to be."""
        keywords = {} if self.draw is None else {"generator": self.draw(storage.device)}

        def real(view: _View) -> Tensor:
            return view.of(storage if view.values is None else view.values.make(storage.device))

        arguments, named = tree_map_only(_View, real, (self.arguments, self.keywords), is_leaf=_is_view)
        return self.operation(*arguments, **named, **keywords)


def _is_view(value: Any) -> bool:
    return isinstance(value, _View)


class DeferredValues(TorchDispatchMode):
    """Parameters made in the with block are on the meta device, and what is done to them is kept.

    Args:
        drawing_on: the type of the device on which values are drawn later. On ``cpu`` they are those of an ordinary
            build with the same seed, bit for bit. Elsewhere each drawing has a seed of its own, from the CPU's
            generator, so that values depend neither on the order of the parameters nor on the number of processes.
    """

    def __init__(self, drawing_on: str = "cpu"):
        super().__init__()  # type: ignore[no-untyped-call]
        self._drawing_on = drawing_on
        self._storages: dict[int, tuple[Any, _Values]] = {}  # the storages themselves keep their keys from being reused

    @contextmanager
    def building(self) -> Iterator[None]:
        """The with block."""
        make = nn.Parameter.__new__

        def deferred(cls: type, data: Any = None, requires_grad: bool = True) -> Any:
            if data is not None and not data.is_meta:
                data = self._defer(data.detach())
            parameter: Any = make(cls, data, requires_grad)
            parameter.deferred_values = self
            return parameter

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(nn.Parameter, "__new__", deferred))
            for function in WHOLE:
                stack.enter_context(mock.patch.object(nn.init, function.__name__, self._keeping(function)))
            stack.enter_context(self)
            yield

    def _keeping(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def kept(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not self._knows(tensor):
                return function(tensor, *args, **kwargs)
            draw = self._advance(function, (tensor, *args), kwargs)
            self._changed(tensor, function, (tensor, *args), kwargs, draw)
            return tensor

        return kept

    def make(self, tensor: Tensor, device: torch.device) -> Tensor:
        """The values of a tensor of the with block, on a device."""
        return self._view(tensor).of(self._values(tensor).make(device))

    def _defer(self, data: Tensor) -> Tensor:
        meta = torch.empty_strided(data.size(), data.stride(), dtype=data.dtype, device="meta")
        self._keep(meta, _Values(partial(_copied, data)))
        return meta

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and self._knows(t)]
        changed = args[0] if func._schema.is_mutable else None
        if not known or (changed is not None and not self._knows(changed)):
            return func(*args, **kwargs)
        draw = self._advance(func, args, kwargs) if torch.Tag.nondeterministic_seeded in func.tags else None
        result = func(*tree_map_only(Tensor, _shape_of, args), **tree_map_only(Tensor, _shape_of, kwargs))
        if changed is not None:
            self._changed(changed, func, args, kwargs, draw)
        else:
            for index, tensor in enumerate(tree_leaves(result)):
                if isinstance(tensor, Tensor) and tensor.is_meta and not self._knows(tensor):
                    step = self._step(None, func, args, kwargs, draw)
                    self._keep(tensor, _Values(partial(_result, step, index)))
        return result

    def _changed(self, changed: Tensor, func: Any, args: Any, kwargs: Any, draw: Any) -> None:
        step, before = self._step(changed, func, args, kwargs, draw), self._values(changed)
        size = changed.untyped_storage().nbytes() // changed.element_size()
        if func in (*OVERWRITING, *WHOLE) and changed.numel() == size:
            self._keep(changed, _Values(partial(_empty, size, changed.dtype), (step,)))
        else:
            self._keep(changed, _Values(before.begin, (*before.steps, step)))

    def _step(self, changed: Tensor | None, func: Any, args: Any, kwargs: Any, draw: Any) -> _Step:
        own = None if changed is None else changed.untyped_storage()._cdata

        def kept(tensor: Tensor) -> Any:
            if not self._knows(tensor):
                return tensor.detach().clone()
            view = self._view(tensor)
            return view if tensor.untyped_storage()._cdata == own else view._replace(values=self._values(tensor))

        arguments, keywords = tree_map_only(Tensor, kept, (args, kwargs))
        if draw is not None:
            keywords.pop("generator", None)
        return _Step(func, arguments, keywords, draw)

    def _advance(self, func: Any, args: Any, kwargs: Any) -> Callable[[torch.device], Generator]:
        """Pass the CPU's generator on, and return how to repeat the drawing."""
        if self._drawing_on != "cpu":
            return partial(_seeded, int(torch.randint(2**62, (1,), device="cpu")))
        state = torch.get_rng_state()
        like = args[0]
        extent = 1 + sum((size - 1) * stride for size, stride in zip(like.size(), like.stride(), strict=True))
        scratch = _empty(extent, like.dtype, torch.device("cpu"))
        func(scratch.as_strided(like.size(), like.stride()), *args[1:], **kwargs)
        return partial(_at_state, state)

    def _knows(self, tensor: Tensor) -> bool:
        return tensor.is_meta and tensor.untyped_storage()._cdata in self._storages

    def _keep(self, tensor: Tensor, values: _Values) -> None:
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage, values

    def _values(self, tensor: Tensor) -> _Values:
        return self._storages[tensor.untyped_storage()._cdata][1]

    @staticmethod
    def _view(tensor: Tensor) -> _View:
        return _View(None, tensor.size(), tensor.stride(), int(tensor.storage_offset()))


def draw_deferred(parameters: Iterable[nn.Parameter], device: torch.device) -> None:
    """Give parameters that were built in the with block of ``DeferredValues`` their values; others stay as they are.

    Args:
        parameters: changed in place. Modules that share one still do.
        device: where they are to be.
    """
    _materialize(parameters, lambda values, parameter: values.make(parameter, device))


def allocate_deferred(parameters: Iterable[nn.Parameter], device: torch.device) -> None:
    """``draw_deferred`` without the drawing: the values are anything, for a caller who overwrites them."""
    _materialize(parameters, lambda values, parameter: torch.empty_like(parameter, device=device))


def _materialize(parameters: Iterable[nn.Parameter], make: Callable[[DeferredValues, nn.Parameter], Tensor]) -> None:
    for parameter in parameters:
        values = parameter.__dict__.pop("deferred_values", None)
        if values is not None:
            made = nn.Parameter(make(values, parameter), parameter.requires_grad)
            made.__dict__.update(parameter.__dict__)
            torch.utils.swap_tensors(parameter, made)


def _shape_of(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else tensor.to("meta")


def _copied(data: Tensor, device: torch.device) -> Tensor:
    return data.as_strided((data.untyped_storage().nbytes() // data.element_size(),), (1,), 0).to(device, copy=True)


def _empty(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu" or size * dtype.itemsize < MAPPED:
        return torch.empty(size, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, size * dtype.itemsize), dtype=dtype)


def _result(step: _Step, index: int, device: torch.device) -> Tensor:
    """The storage of a result of an operation."""
    tensor: Tensor = tree_leaves(step.repeat(torch.empty(0, device=device)))[index]
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)


def _seeded(seed: int, device: torch.device) -> Generator:
    return Generator(device).manual_seed(seed)


def _at_state(state: Tensor, device: torch.device) -> Generator:
    return Generator(device).set_state(state)
