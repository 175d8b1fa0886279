"""A mixture of experts over one process or several."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ....core.parallel.exchange import exchange
from .global_groups import get_all2all_group, get_moe_group

Base = nn.Module


class _AllToAll(torch.autograd.Function):
    """Sends equal parts of the first axis to the processes of a group, and gets theirs."""

    @staticmethod
    def forward(ctx: Any, group: Any, input: Tensor) -> Tensor:
        ctx.group = group
        parts = [len(input) // dist.get_world_size(group)] * dist.get_world_size(group)
        return exchange(input, parts, parts, group)

    @staticmethod
    def backward(ctx: Any, *grad_output: Tensor) -> tuple[None, Tensor]:
        parts = [len(grad_output[0]) // dist.get_world_size(ctx.group)] * dist.get_world_size(ctx.group)
        return None, exchange(grad_output[0], parts, parts, ctx.group)


class MOELayer(Base):
    """Sends each token to the experts that the gate chooses. Works without a process group, and on CPUs.

    Args:
        gate: such as ``Top1Gate`` or ``Top2Gate``.
        experts: those of this process (``make_experts``).
        args: a config with moe_expert_count.
    """

    def __init__(self, gate: nn.Module, experts: nn.ModuleList | nn.Module, args: Any):
        super().__init__()
        self.gate = gate
        self.experts = experts if isinstance(experts, nn.ModuleList) else nn.ModuleList([experts])
        self.args = args
        self.expert_group = get_moe_group(args.moe_expert_count)[1]
        self.all2all_group = get_all2all_group(args.moe_expert_count)[1]
        self.world_size = dist.get_world_size(self.expert_group) if self.expert_group is not None else 1
        self.all2all_size = dist.get_world_size(self.all2all_group) if self.all2all_group is not None else 1
        for parameter in self.experts.parameters():
            setattr(parameter, "expert", True)  # noqa: B010 - a mark that torch's class does not declare
        self.num_local_experts = len(self.experts)
        self.in_generation = False
        self.a2a_cuda_event_intervals: list[Any] = []
        self.a2a_cpu_time_ms = 0.0
        self.metadata: dict[str, Any] = {}

    def forward(self, *input: Tensor, input_padding_mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(rows, seq, width) to the same shape, and the balance loss.

        Args:
            input: one tensor.
            input_padding_mask: (rows, seq), True for tokens that go nowhere.
        """
        assert len(input) == 1, "MOELayer takes one tensor."
        tokens = input[0].flatten(0, -2)
        mask = None if input_padding_mask is None else input_padding_mask.reshape(-1).bool()
        loss, combine, dispatch, self.metadata = self.gate(tokens, mask)
        tokens_of = torch.einsum("sec,sm->ecm", dispatch.to(tokens.dtype), tokens)
        outputs = self._compute(tokens_of)
        result = torch.einsum("sec,ecm->sm", combine.to(tokens.dtype), outputs)
        return result.view(input[0].shape), loss

    def _compute(self, tokens: Tensor) -> Tensor:
        """(experts, capacity, width) of this process's tokens through the experts, wherever they are."""
        capacity, width = tokens.size(1), tokens.size(2)
        if self.all2all_size > 1:
            tokens = self._padded(tokens)
            tokens = self.all_to_all_wrapper(tokens)
        places = tokens.reshape(self.all2all_size, self.num_local_experts, -1, width)
        outputs = torch.stack(
            [expert(places[:, index].flatten(0, 1)) for index, expert in enumerate(self.experts)]
        ).unflatten(1, (self.all2all_size, -1))
        outputs = outputs.transpose(0, 1).flatten(0, 1)
        if self.all2all_size > 1:
            outputs = self.all_to_all_wrapper(outputs)
        return outputs[:, :capacity]

    def _padded(self, tokens: Tensor) -> Tensor:
        """With the largest capacity of the group's processes, whose batches may differ."""
        largest = torch.tensor(tokens.size(1), device=tokens.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.all2all_group)
        return nn.functional.pad(tokens, (0, 0, 0, int(largest) - tokens.size(1)))

    def prepare_for_inference_(self) -> None:
        """Say that the layer generates."""
        self.in_generation = True

    def all_to_all_wrapper(self, input: Tensor) -> Tensor:
        """Exchange equal parts of the first axis with the group."""
        exchanged: Tensor = _AllToAll.apply(self.all2all_group, input)
        return exchanged

    def record_all_to_all_stats(self) -> None:
        """Times of exchanges are not measured; torch.profiler shows them."""
