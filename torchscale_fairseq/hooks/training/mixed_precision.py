"""--fp16 and --bf16 in few launches: between parameters in half precision and the float32 copies that the optimizer
updates, fairseq copies one parameter at a time, in hundreds of kernels that a GPU finishes faster than Python starts
them. Here one kernel copies many, or none where the optimizer reads and writes both sides itself. Values are
fairseq's."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from fairseq import utils
from torch import Tensor

from torchscale_fairseq.core.parallel.expert_parameters import ExpertGradients
from torchscale_fairseq.hooks.contracts import UpdatesHalves
from torchscale_fairseq.hooks.experts.gradient_clipping import squares_of_experts

EARLY = "_squares_of_experts"
"""Attribute of an optimizer: those of its gradients, from ``measure_experts_early`` until it clips or forgets them."""


def copy_gradients(stock: Callable[..., None]) -> Callable[..., None]:
    """``FP16Optimizer._sync_fp16_grads_to_fp32``: a parameter without a gradient has one of zeros."""

    @torch.no_grad()
    def _sync_fp16_grads_to_fp32(self: Any) -> None:
        if not self._needs_sync:
            return
        self._needs_sync = False
        if isinstance(self.optimizer, UpdatesHalves) and self.optimizer.take_halves(_halves(self)):
            _give_up_gradients(self)
            return
        pairs = list(zip(self.fp16_params, _gradients_in_float32(self), strict=True))
        given = [p.grad for p in self.fp16_params if p.grad is not None]
        missing = [grad for p, grad in pairs if p.grad is None]
        if given:
            torch._foreach_copy_([grad for p, grad in pairs if p.grad is not None], given)
        if missing:
            torch._foreach_zero_(missing)

    return _sync_fp16_grads_to_fp32


def copy_parameters(stock: Callable[..., None]) -> Callable[..., None]:
    """``FP16Optimizer._sync_fp32_params_to_fp16``."""

    @torch.no_grad()
    def _sync_fp32_params_to_fp16(self: Any) -> None:
        if _are_updated(self):
            return
        torch._foreach_copy_(list(self.fp16_params), parameters_in_float32(self))

    return _sync_fp32_params_to_fp16


def measure_halves(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``FP16Optimizer.clip_grad_norm``, which measures the gradients of the float32 copies."""

    def clip_grad_norm(self: Any, max_norm: float, aggregate_norm_fn: Any = None) -> Tensor:
        early = {"of_experts": self.__dict__.pop(EARLY)} if EARLY in self.__dict__ else {}
        self._sync_fp16_grads_to_fp32()
        if not _are_updated(self):
            return stock(self, max_norm, aggregate_norm_fn)
        fp32_optimizer = self.fp32_optimizer
        self.fp32_optimizer = SimpleNamespace(clip_grad_norm=partial(utils.clip_grad_norm_, self.fp16_params, **early))
        try:
            return stock(self, max_norm, aggregate_norm_fn)
        finally:
            self.fp32_optimizer = fp32_optimizer

    return clip_grad_norm


def measure_experts_early(optimizer: Any) -> None:
    """Measure the gradients of experts for ``clip_grad_norm``. Called before the device waits until all other gradients
    have been summed over processes, it gives the device something to do meanwhile.

    Args:
        optimizer: fairseq's. Nothing is measured if its last update was not made from gradients in half precision,
            which fairseq leaves as they are until it clips, or if gradients of experts are summed as well.
    """
    optimizer.__dict__.pop(EARLY, None)
    if not hasattr(optimizer, "fp16_params") or not _are_updated(optimizer):
        return
    experts = ExpertGradients.of(optimizer.fp16_params)
    if experts is not None and experts.split.replicas == 1:
        setattr(optimizer, EARLY, squares_of_experts(optimizer.fp16_params))


def forget_gradients(stock: Callable[..., None]) -> Callable[..., None]:
    """``FP16Optimizer.zero_grad``, which fills the float32 gradients with zeros, though the next copy replaces them."""

    def zero_grad(self: Any) -> None:
        for p in self.fp16_params:
            p.grad = None
        self.__dict__.pop(EARLY, None)
        self._needs_sync = True
        self._multiply_factor = 1.0 if self.scaler is None else 1.0 / float(self.scaler.loss_scale)

    return zero_grad


def parameters_in_float32(optimizer: Any) -> list[Tensor]:
    """The float32 copies of a FP16Optimizer, one per parameter, in the order of ``fp16_params``."""
    copies = optimizer.fp32_params
    if not isinstance(copies, dict):
        return [p.detach() for p in copies]
    if not hasattr(optimizer, "_views"):
        optimizer._views = _views({place: flat.detach() for place, flat in copies.items()}, optimizer.fp16_params)
    views: list[Tensor] = optimizer._views
    return views


def _are_updated(optimizer: Any) -> bool:
    """Whether the optimizer reads and writes the parameters in half precision itself."""
    return isinstance(optimizer.optimizer, UpdatesHalves) and bool(optimizer.optimizer.halves)


def _give_up_gradients(optimizer: Any) -> None:
    """Free the memory in which fairseq would keep gradients in float32, if they have never been needed."""
    if isinstance(optimizer.fp32_params, list) and not hasattr(optimizer, "_gradient_views"):
        for copy in optimizer.fp32_params:
            copy.grad = None


def _halves(optimizer: Any) -> dict[Tensor, list[Tensor]]:
    """By float32 copy, the parameters that lie in it one after the other."""
    copies = optimizer.fp32_params
    if isinstance(copies, dict):
        return {copy: [p for p in optimizer.fp16_params if p.device.index == place] for place, copy in copies.items()}
    return {copy: [p] for copy, p in zip(copies, optimizer.fp16_params, strict=True)}


def _gradients_in_float32(optimizer: Any) -> list[Tensor]:
    """Gradients of the copy in float32, which lie together in one tensor per device, so that one kernel measures their
    norm."""
    copies = optimizer.fp32_params
    if not hasattr(optimizer, "_gradient_views"):
        flat = _together(copies) if isinstance(copies, list) else {place: copy.grad for place, copy in copies.items()}
        optimizer._gradient_views = _views(flat, optimizer.fp16_params)
    views: list[Tensor] = optimizer._gradient_views
    if isinstance(copies, list):
        for p, view in zip(copies, views, strict=True):
            p.grad = view
    return views


def _together(params: Sequence[Tensor]) -> dict[Any, Tensor]:
    """Per device a flat tensor with room for gradients of the parameters on it; theirs are given up."""
    sizes: dict[Any, int] = defaultdict(int)
    for p in params:
        p.grad = None
        sizes[p.device] += p.numel()
    return {device.index: torch.zeros(size, device=device) for device, size in sizes.items()}


def _views(flat: dict[Any, Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """Per parameter its part of the flat copy of its device."""
    offsets: dict[Any, int] = defaultdict(int)
    views = []
    for p in params:
        place, start = p.device.index, offsets[p.device.index]
        offsets[place] = start + p.numel()
        views.append(flat[place][start : offsets[place]].view_as(p))
    return views
