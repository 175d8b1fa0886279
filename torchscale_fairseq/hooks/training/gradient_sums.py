"""Gradients averaged over processes, bucket by bucket, in updates of which some are recorded (``step_graphs.py``).

torch's DistributedDataParallel begins to sum a bucket when the backward pass has computed its gradients, in hooks that
a recorded update does not call. Here such hooks do the same in updates that run as usual. While an update is recorded,
they record an event after each bucket instead. After a replay has been started, another stream waits for one event
after the other, and sums the bucket while the device goes on with the replay. The sums themselves are never recorded:
processes may record at different times, and NCCL's watchdog sees each sum.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from fairseq.distributed import LegacyDistributedDataParallel, ModuleProxyWrapper
from torch import Tensor, nn
from torch.distributed.utils import _sync_module_states

from torchscale_fairseq.core.parallel.expert_parameters import expert_names, is_expert

EARLY = ("c10d", "pytorch_ddp")
LATE = ("no_c10d", "legacy_ddp")
EXTERNAL = "external" in signature(torch.cuda.Event.__new__).parameters
"""Whether this torch records events that a stream outside of a recording can wait for (2.9). If not, the sums of a
replay begin at its end."""
SENT_AT_ONCE = 250 * 2**20
"""Bytes of weights that are sent together, as by torch's DistributedDataParallel."""


def can_sum(cfg: Any) -> bool:
    """Whether a run with several processes may leave its gradients to :class:`GradientSums`.

    Args:
        cfg: fairseq's whole config.
    """
    options = cfg.distributed_training
    plain = str(options.ddp_comm_hook) == "none" and not options.broadcast_buffers
    watched = options.heartbeat_timeout > 0  # by a wrapper that ends runs without forward passes, as replays have none
    known = (options.ddp_backend in EARLY and plain) or options.ddp_backend in LATE
    return known and not watched and not cfg.optimization.use_bmuf


def sum_gradients(cfg: Any, model: nn.Module, process_group: Any) -> ModuleProxyWrapper:
    """A model, on its device, in a wrapper that averages its gradients.

    Args:
        cfg: fairseq's whole config, of which ``can_sum`` says yes.
        model: in the type of its gradients.
        process_group: the processes.
    """
    options = cfg.distributed_training
    early = options.ddp_backend in EARLY
    most = options.bucket_cap_mb * 2**20 if early else math.inf
    return ModuleProxyWrapper(GradientSums(model, process_group, early=early, bucket_bytes=most))


@dataclass
class _Bucket:
    """Parameters of one type whose gradients are summed together."""

    params: list[nn.Parameter] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    """While they are summed."""
    missing: int = 0
    """Gradients that the backward pass has not computed yet."""

    @property
    def bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.params)


class GradientSums(LegacyDistributedDataParallel):
    """A model in several processes that hold equal parameters, whose gradients are averaged in place. A parameter
    without a gradient counts as zero. Experts, which may differ, are left alone. All processes sum the same buckets in
    the same order, whatever each of them records.

    Args:
        module: the model.
        process_group: the processes.
        early: as torch's DistributedDataParallel, give all processes the first one's weights, and sum during the
            backward pass; else as fairseq's legacy one, sum after it.
        bucket_bytes: of gradients that are summed together, unless one has more.
    """

    accumulate_grads: bool

    def __init__(self, module: nn.Module, process_group: Any, *, early: bool, bucket_bytes: float):
        super().__init__(module, process_group)
        if early:
            _sync_module_states(module, process_group, SENT_AT_ONCE, 0, expert_names(module))
        learning = [p for p in module.parameters() if p.requires_grad and not is_expert(p)]
        self._buckets = list(_buckets(reversed(learning), bucket_bytes))
        self._works: list[Any] = []
        """The sums that have begun, of one bucket after the other."""
        self._marks: list[Any] | None = None
        """While an update is recorded, an event per bucket."""
        self._side: Any = None
        """The stream that waits for events of a replay."""
        self._expect_gradients()
        for bucket in self._buckets if early else []:
            for p in bucket.params:
                p.register_post_accumulate_grad_hook(partial(self._computed, bucket))

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Stock's, which a batch that runs out of memory would leave on."""
        before, self.accumulate_grads = self.accumulate_grads, True
        try:
            yield
        finally:
            self.accumulate_grads = before

    @contextmanager
    def recording(self) -> Iterator[list[Any]]:
        """Within the block an update is recorded. Returns a list that receives what ``sum_rest`` takes after each of
        its replays."""
        marks: list[Any] = []
        self._marks = marks
        self._expect_gradients()
        try:
            yield marks
        finally:
            self._marks = None
            self._expect_gradients()

    def sum_rest(self, marks: Sequence[Any] = ()) -> None:
        """Begin to average all buckets that no hook has begun, after a forward and backward pass.

        Args:
            marks: what ``recording`` returned, after a replay.
        """
        if self.accumulate_grads:
            return
        for mark in marks:
            self._sum_after(mark)
        while len(self._works) < len(self._buckets):
            self._sum_next()

    def sum_zeros(self) -> None:
        """``sum_rest`` for a process that has forgotten its gradients, after a batch that ran out of memory."""
        if self.accumulate_grads:
            return
        for bucket in self._buckets[len(self._works) :]:
            for p in bucket.params:
                p.grad = None
        self.sum_rest()

    def all_reduce_grads(self) -> None:
        """Let the device wait for the averages, and begin those of buckets that have not begun. fairseq's optimizers
        call it."""
        if self.accumulate_grads:
            return
        self.sum_rest()
        for bucket, work in zip(self._buckets, self._works, strict=True):
            work.wait()
            for p, gradient in zip(bucket.params, bucket.gradients, strict=True):
                p.grad = gradient  # forgotten since, if the device ran out of memory
            bucket.gradients = []
        self._works = []
        self._expect_gradients()

    def _expect_gradients(self) -> None:
        for bucket in self._buckets:
            bucket.missing = len(bucket.params)

    def _computed(self, bucket: _Bucket, _: nn.Parameter) -> None:
        """Called when the backward pass has computed the gradient of a parameter."""
        if self.accumulate_grads and self._marks is None:
            return
        bucket.missing -= 1
        begun = self._works if self._marks is None else self._marks
        while len(begun) < len(self._buckets) and not self._buckets[len(begun)].missing:
            if self._marks is None:
                self._sum_next()
            elif EXTERNAL:
                self._marks.append(mark_recording(bucket.params[0].device))
            else:
                return

    def _sum_after(self, mark: Any) -> None:
        """Begin to average the next bucket when a replay has computed it."""
        if mark is None:
            self._sum_next()
            return
        self._side = self._side or torch.cuda.Stream()
        with torch.cuda.stream(self._side):
            mark.wait()
            self._sum_next()

    def _sum_next(self) -> None:
        """Begin to average the next bucket when the current stream has computed it."""
        bucket = self._buckets[len(self._works)]
        for p in bucket.params:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        bucket.gradients = [p.grad for p in bucket.params if p.grad is not None]
        self._works.append(_average(bucket.gradients, self.process_group))


def _average(gradients: list[Tensor], group: Any) -> Any:
    """Begin to average tensors of one type over processes, in place. Returns what is to be waited for."""
    averages = dist.get_backend(group) == "nccl"
    if not averages:
        torch._foreach_div_(gradients, dist.get_world_size(group))
    operation = dist.ReduceOp.AVG if averages else dist.ReduceOp.SUM
    with dist._coalescing_manager(group, async_ops=True) as work:
        for gradient in gradients:
            dist.all_reduce(gradient, operation, group)
    return work


def mark_recording(device: torch.device) -> Any:
    """An event after what has been recorded so far; None on a CPU, whose replays have ended when they return."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(external=True)
    event.record()
    return event


def _buckets(params: Iterable[nn.Parameter], most: float) -> Iterator[_Bucket]:
    """Parameters in runs of one type with at most this number of bytes, unless one alone has more."""
    bucket = _Bucket()
    for p in params:
        full = bucket.bytes + p.numel() * p.element_size() > most
        if bucket.params and (full or p.dtype != bucket.params[0].dtype):
            yield bucket
            bucket = _Bucket()
        bucket.params.append(p)
    if bucket.params:
        yield bucket
