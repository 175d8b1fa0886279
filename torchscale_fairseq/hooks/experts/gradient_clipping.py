"""Gradients of experts in fairseq's optimizer step: summed over replicas, and clipped with all others by SparseClip.

Stock leaves experts out of the norm but scales them, so that each process would clip by another norm, and one whose
experts overflow would not be noticed.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from torchscale_fairseq.core.ops.sparse_clip import sparse_norm, sum_of_squares
from torchscale_fairseq.core.parallel.expert_parameters import ExpertGradients, is_expert, mark_expert, mark_of
from torchscale_fairseq.core.parallel.fully_sharded import LocalParameters
from torchscale_fairseq.core.parallel.groups import ExpertSplit, replica_group


def clip_with_experts(stock: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``fairseq.utils.clip_grad_norm_`` by kernels that take many gradients at a time; with experts by SparseClip. It
    also takes what ``squares_of_experts`` returned for the gradients."""

    def clip_grad_norm_(
        params: Any, max_norm: float, aggregate_norm_fn: Any = None, *, of_experts: Tensor | None = None
    ) -> Tensor:
        params = [params] if isinstance(params, Tensor) else list(params)
        experts = ExpertGradients.of(params)
        if any(LocalParameters.copies_of(p) is not None for p in params):
            return _clip_slices(params, max_norm, 1.0 if experts is None else experts.norm_weight)
        if experts is None:
            return _clip_together(stock, params, max_norm, aggregate_norm_fn)
        dense = [p.grad.detach() for p in params if p.grad is not None and not is_expert(p)]
        of_experts = squares_of_experts(params) if of_experts is None else of_experts
        total = over_processes(of_experts, experts.split)
        norm = sparse_norm(sum_of_squares(dense, params[0].device), total, weight=experts.norm_weight)
        if max_norm > 0:
            clip_grads_with_norm_(params, max_norm, norm)
        return norm.float()

    return clip_grad_norm_


def squares_of_experts(params: list[Tensor]) -> Tensor:
    """The sum over the gradients of this process's experts among parameters."""
    return sum_of_squares([p.grad.detach() for p in params if p.grad is not None and is_expert(p)], params[0].device)


@torch.no_grad()
def _clip_together(
    stock: Callable[..., Tensor], params: list[Tensor], max_norm: float, aggregate_norm_fn: Any
) -> Tensor:
    """Stock's values; without apex stock starts a kernel for each gradient."""
    grads = [p.grad for p in params if p.grad is not None]
    if not grads or any(g.is_sparse for g in grads) or any(map(is_expert, params)):
        return stock(params, max_norm, aggregate_norm_fn)
    norm = _norm(grads)
    if aggregate_norm_fn is not None:
        norm = aggregate_norm_fn(norm)
    if max_norm > 0:
        torch._foreach_mul_(grads, (float(max_norm) / (norm + 1e-6)).clamp_(max=1))
    return norm


def _clip_slices(params: list[Any], max_norm: float, expert_weight: float) -> Tensor:
    """Clip the gradients of the slices of a sharded model (``parallel.fully_sharded.LocalParameters``) by the norm of
    them all, each counted once."""
    alike: dict[tuple[int, bool], list[Tensor]] = defaultdict(list)
    for p in params:
        if p.grad is not None:
            alike[LocalParameters.copies_of(p) or 1, is_expert(p)].append(p.grad)
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    squares = torch.zeros(2, device=device)
    for (copies, of_expert), grads in alike.items():
        squares[int(of_expert)] += sum_of_squares(grads, device) / copies
    dist.all_reduce(squares)
    norm = sparse_norm(squares[0], squares[1], weight=expert_weight)
    if max_norm > 0:
        for grads in alike.values():
            torch._foreach_mul_(grads, (float(max_norm) / (norm.to(grads[0].device) + 1e-6)).clamp_(max=1))
    return norm


def _norm(grads: list[Tensor]) -> Tensor:
    """The norm of all entries, in one kernel where the gradients are all there is in one larger tensor."""
    whole = grads[0]._base
    if whole is not None and all(g._base is whole for g in grads) and sum(g.numel() for g in grads) == whole.numel():
        return torch.linalg.vector_norm(whole, dtype=torch.float32)
    norms = torch._foreach_norm(grads, 2, dtype=torch.float32)
    return torch.linalg.vector_norm(torch.stack([norm.to(grads[0].device) for norm in norms]))


def reduce_with_replicas(stock: Callable[..., None]) -> Callable[..., None]:
    """``FairseqOptimizer.all_reduce_grads`` that also sums the gradients of an expert that several processes hold."""

    def all_reduce_grads(self: Any, module: nn.Module) -> None:
        stock(self, module)
        experts = ExpertGradients.of(module.parameters())
        if experts is None or experts.split.replicas == 1:
            return
        group = replica_group(experts.split)
        for parameter in module.parameters():
            if is_expert(parameter) and parameter.grad is not None:
                dist.all_reduce(parameter.grad, group=group)

    return all_reduce_grads


def mark_copies(stock: Callable[..., Any]) -> Callable[..., Any]:
    """``FP16Optimizer.build_fp32_params``, whose float32 copies of experts say how their gradients are treated, as the
    parameters do; stock's say no more than that they are of experts."""

    def build_fp32_params(cls: type, args: Any, params: Any, flatten: bool = True) -> Any:
        copies = stock(cls, args, params, flatten=flatten)
        for parameter, copy in zip(params, () if flatten else copies, strict=not flatten):
            if is_expert(parameter):
                mark_expert(copy, mark_of(parameter))
        return copies

    return build_fp32_params


def over_processes(squares: Tensor, split: ExpertSplit) -> Tensor:
    """The sum over all experts, each counted once."""
    if split.size * split.replicas == 1:
        return squares
    total = squares.clone()
    dist.all_reduce(total)
    return total / split.replicas
