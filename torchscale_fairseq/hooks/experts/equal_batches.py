"""Experts that several processes hold, and that exchange tokens without waiting for the device where they can.

That takes batches of one size in all processes (``core.parallel.gathering``). The processes compare their sizes before
each batch, from host memory, while the device still computes the batch before.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from torchscale_fairseq.core.layers.experts import Experts
from torchscale_fairseq.core.ops.expert_rows import rows_refusal
from torchscale_fairseq.core.parallel.gathering import can_gather, equal_batches
from torchscale_fairseq.hooks.training.padding import TOKENS, is_free_of_padding


def reads_counts(experts: Experts, cfg: Any, device: torch.device) -> bool:
    """Whether the host has to read how many tokens go to each expert, however equal the batches are.

    Args:
        experts: of a layer.
        cfg: fairseq's whole config.
        device: on which they run.
    """
    in_bfloat16 = cfg.common.bf16 and not cfg.common.amp
    too_many = experts.split.size > 1 and not can_gather(experts.split)
    return not in_bfloat16 or too_many or bool(experts.rows_refusal() or rows_refusal(torch.bfloat16, device))


def compares_batches(cfg: Any, model: nn.Module, device: torch.device) -> bool:
    """Whether a training profits from batches that are known to have one size.

    Args:
        cfg: fairseq's whole config.
        model: as the Trainer receives it.
        device: on which it runs.
    """
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    split = [module for module in experts if module.split.size > 1]
    sharded = cfg.distributed_training.ddp_backend == "fully_sharded"
    return bool(split) and not sharded and not any(reads_counts(module, cfg, device) for module in experts)


class EqualBatches:
    """``task.train_step`` whose processes compare the sizes of their batches first. All processes build and call it
    together.

    Args:
        usual: the task's, for batches that differ or have padding.
        equal: for batches of one size in all processes.
    """

    def __init__(self, usual: Callable[..., Any], equal: Callable[..., Any]):
        self._usual, self._equal = usual, equal
        self._group = dist.new_group(backend="gloo")

    def __call__(self, sample: Any, *arguments: Any, **keywords: Any) -> Any:
        """Stock's arguments and results."""
        equal = self._are_equal(_sizes(sample))
        with equal_batches(equal):
            return (self._equal if equal else self._usual)(sample, *arguments, **keywords)

    def _are_equal(self, sizes: list[int]) -> bool:
        """Whether all processes have these sizes, and there are tokens."""
        extremes = torch.tensor([*sizes, *(-size for size in sizes)])
        dist.all_reduce(extremes, dist.ReduceOp.MAX, self._group)
        most, negative_least = extremes.view(2, -1)
        return any(sizes) and torch.equal(most, -negative_least)


def _sizes(sample: Any) -> list[int]:
    """Rows and lengths of a batch's token tensors; zeros for one with padding, or of something else than tokens."""
    if not is_free_of_padding(sample):
        return [0] * 2 * len(TOKENS)
    tokens = [sample["net_input"].get(name) for name in TOKENS]
    return [size for x in tokens for size in ((0, 0) if x is None else x.shape[:2])]
