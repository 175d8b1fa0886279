"""Gradients summed over processes after the backward pass.

torch's DistributedDataParallel sums them while the backward pass goes on, from hooks that a recorded update
(``step_graphs.py``) does not call. Here all gradients are summed at once when the pass is over, as fairseq's
``--ddp-backend legacy_ddp`` does, but in a few kernels instead of several per parameter.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from fairseq.distributed import LegacyDistributedDataParallel
from torch import Tensor, nn

OVERLAPPING = ("c10d", "pytorch_ddp")
LATE = ("no_c10d", "legacy_ddp")
MOST_BYTES = 2**30
"""Gradients of a model that OVERLAPPING backends leave to this module. Larger ones need more time on the links than a
recorded update saves."""
AT_ONCE = 2**26
"""Bytes of gradients that are copied together and summed, while the next ones are copied."""


def can_sum_late(cfg: Any, model: nn.Module) -> bool:
    """Whether the gradients of a run with several processes may be summed after the backward pass.

    Args:
        cfg: fairseq's whole config.
        model: on any device, in the type of its gradients.
    """
    options = cfg.distributed_training
    small = sum(p.numel() * p.element_size() for p in model.parameters()) <= MOST_BYTES
    plain = str(options.ddp_comm_hook) == "none" and not options.broadcast_buffers
    overlapping = options.ddp_backend in OVERLAPPING and plain and small
    watched = options.heartbeat_timeout > 0  # by a wrapper that ends runs without forward passes, as replays have none
    return not cfg.optimization.use_bmuf and not watched and (overlapping or options.ddp_backend in LATE)


class LateReduction(LegacyDistributedDataParallel):
    """A model in several processes that hold equal parameters. ``all_reduce_grads``, which fairseq's optimizers call,
    averages the gradients.

    Args:
        module: the model.
        process_group: the processes.
    """

    def all_reduce_grads(self) -> None:
        """Average the gradients over processes, in place; a parameter without one counts as zero. All processes call
        it together."""
        if self.accumulate_grads:
            return
        alike: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for p in self.module.parameters():
            if p.requires_grad:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                alike[p.grad.dtype].append(p.grad)
        sums = [self._begin(part) for gradients in alike.values() for part in _parts(gradients)]
        for part, flat, work in sums:
            work.wait()
            pieces = flat.split([gradient.numel() for gradient in part])
            torch._foreach_copy_(part, [piece.view_as(gradient) for piece, gradient in zip(pieces, part, strict=True)])

    def _begin(self, part: list[Tensor]) -> tuple[list[Tensor], Tensor, Any]:
        """Begin to average gradients of one type. Returns them, their averages as soon as the work is done, and the
        work."""
        flat = torch.cat([gradient.reshape(-1) for gradient in part])
        flat /= self.world_size
        return part, flat, dist.all_reduce(flat, group=self.process_group, async_op=True)


def _parts(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients in runs of AT_ONCE bytes, or one that has more alone."""
    part: list[Tensor] = []
    taken = 0
    for gradient in gradients:
        if part and taken + gradient.nbytes > AT_ONCE:
            yield part
            part, taken = [], 0
        part.append(gradient)
        taken += gradient.nbytes
    if part:
        yield part
