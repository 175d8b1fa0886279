"""Gradients summed over processes after the backward pass.

torch's DistributedDataParallel sums them while the backward pass goes on, from hooks that a recorded update
(``step_graphs.py``) does not call. Here all gradients are summed at once when the pass is over, as fairseq's
``--ddp-backend legacy_ddp`` does, but in a few kernels instead of several per parameter.
"""

from collections import defaultdict
from typing import Any

import torch
from fairseq.distributed import LegacyDistributedDataParallel
from fairseq.distributed import utils as distributed_utils
from torch import Tensor, nn

OVERLAPPING = ("c10d", "pytorch_ddp")
LATE = ("no_c10d", "legacy_ddp")
MOST_BYTES = 2**30
"""Gradients of a model that OVERLAPPING backends leave to this module. Larger ones need more time on the links than a
recorded update saves."""


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
        for gradients in alike.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            flat /= self.world_size
            distributed_utils.all_reduce(flat, self.process_group)
            parts = flat.split([gradient.numel() for gradient in gradients])
            views = [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
            torch._foreach_copy_(gradients, views)
