"""Models to be sharded are built on the meta device; values are drawn when a part of the model is cut into slices."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from fairseq.models import ARCH_MODEL_REGISTRY

from torchscale_fairseq.core.deferred_values import DeferredValues

_deferred: ContextVar[DeferredValues | None] = ContextVar("deferred_values", default=None)


def defer_values(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fsdp_enable_wrap``, in which fairseq builds a model to be sharded, and its models wrap their layers by
    fairscale. Here nothing is wrapped."""

    @contextmanager
    def fsdp_enable_wrap(cfg: Any) -> Iterator[None]:
        on_gpu = torch.cuda.is_available() and not cfg._get_parent().common.cpu
        before = _deferred.set(DeferredValues("cuda" if on_gpu else "cpu"))
        try:
            yield
        finally:
            _deferred.reset(before)

    return fsdp_enable_wrap


def build_on_meta_device(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``fairseq.models.build_model``: a model of this package that is to be sharded gets its values later. Other
    models may look at the values while they are built."""

    def build_model(cfg: Any, task: Any, from_checkpoint: bool = False) -> Any:
        values = _deferred.get()
        if values is None or from_checkpoint or not is_ours(cfg):
            return stock(cfg, task, from_checkpoint)
        with values.building():
            return stock(cfg, task, from_checkpoint)

    return build_model


def is_ours(cfg: Any) -> bool:
    """Whether a model with these options is one of this package."""
    name = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
    return bool(ARCH_MODEL_REGISTRY.get(name, object).__module__.startswith("torchscale_fairseq."))
