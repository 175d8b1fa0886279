"""Mixture of experts: router, dispatch, experts, combine.

Axes: (tokens) of one batch, flattened; (k) choices of a token; (choices) kept pairs of token and expert.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..ops.backend import log_choice
from ..ops.expert_rows import Places, mix_rows, rows_refusal, take_rows
from ..ops.masks import is_traced
from ..ops.routing import Choices, Routing, balance_loss, capacity_of, route, statistics, z_loss
from ..ops.segments import Segments
from ..parallel.dispatch import Dispatcher, LocalDispatcher, dispatcher_for
from ..parallel.gathering import begin_gather, begin_sum, finish_sum, gather_choices, gathers
from .experts import Experts


@dataclass(frozen=True)
class RoutingOptions:
    """How tokens are routed. Names and meanings are the config's."""

    top_k: int
    capacity_factor: float | None
    """None: dropless."""
    eval_capacity_token_fraction: float | None
    """None: dropless."""
    policy: str
    normalize_before_dropping: bool
    prioritized: bool
    use_fp32: bool
    torchscale_compatible: bool = False

    def capacity(self, tokens: int, experts: int, *, training: bool) -> int | None:
        """Places per expert, None for one for everybody."""
        fraction = self.eval_capacity_token_fraction
        if not training and fraction is None:
            return None
        if not training and fraction is not None and fraction > 0:
            return math.ceil(fraction * tokens)
        if self.capacity_factor is None:
            return None
        return capacity_of(tokens, experts, top_k=self.top_k, factor=self.capacity_factor)

    def policy_for(self, *, training: bool) -> str:
        """Chance is for training; TorchScale's code also evaluates by it."""
        return self.policy if training or self.torchscale_compatible else "all"


@dataclass(frozen=True)
class RoutingReport:
    """A layer's routing, as the losses and the log need it."""

    balance_loss: Tensor
    z_loss: Tensor
    statistics: dict[str, Tensor]


class MixtureOfExperts(nn.Module):
    """Each token's feed-forward network is a weighted sum of those of the experts it is routed to.

    Args:
        gate: a router.
        experts: those of this process.
        options: how tokens are routed.
        time_first: tokens queue for experts time step by time step, not sequence by sequence.
    """

    def __init__(self, gate: nn.Module, experts: Experts, options: RoutingOptions, *, time_first: bool = False):
        super().__init__()
        self.gate = gate
        self.experts = experts
        self.options = options
        self.time_first = time_first
        self.dispatcher = dispatcher_for(experts.split)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, RoutingReport]:
        """Route and compute.

        Args:
            x: (batch, seq, width).
            padding_mask: (batch, seq), True for tokens that are not routed; their output is zero.

        Returns:
            (batch, seq, width), and the report.
        """
        if self.time_first:
            x, padding_mask = x.transpose(0, 1), None if padding_mask is None else padding_mask.transpose(0, 1)
        tokens = x.reshape(-1, x.size(-1))
        if padding_mask is None:
            output, report = self._mix(tokens, None)
        elif self.options.torchscale_compatible or is_traced():
            # TorchScale counts padding when it computes capacity and balance; a traced call cannot count at all.
            output, report = self._mix(tokens, padding_mask.reshape(-1))
        else:
            real = padding_mask.logical_not().reshape(-1).nonzero().squeeze(1)
            mixed, report = self._mix(tokens[real], None)
            output = torch.zeros_like(tokens, dtype=mixed.dtype).index_copy(0, real, mixed)
        output = output.view(x.shape)
        return output.transpose(0, 1) if self.time_first else output, report

    def _mix(self, tokens: Tensor, padding: Tensor | None) -> tuple[Tensor, RoutingReport]:
        if gathers(self.experts.split):
            return self._mix_everyones(tokens, padding)
        routing, scores = self._route(tokens, padding)
        return self._mix_choices(tokens, routing, self.dispatcher), _report(routing, *scores)

    def _mix_everyones(self, tokens: Tensor, padding: Tensor | None) -> tuple[Tensor, RoutingReport]:
        """``_mix`` where the processes gather tokens. They are on their way while this one routes, and outputs while it
        reports."""
        split = self.experts.split
        sent = begin_gather(tokens, split)
        routing, scores = self._route(tokens, padding)
        everyones, choices = gather_choices(sent, routing, split)
        shares = begin_sum(self._mix_choices(everyones, choices, LocalDispatcher()), split)
        try:
            report = _report(routing, *scores)
        finally:  # checkpointing ends a recomputation in the midst of it, once it has what it needs
            output = finish_sum(shares, split)
        return output, report

    def _mix_choices(self, tokens: Tensor, choices: Choices, dispatcher: Dispatcher) -> Tensor:
        """The experts' weighted outputs, (tokens, width), as far as the dispatcher reaches experts."""
        if self._stays_on_device(tokens, dispatcher):
            places = Places.of(choices)
            rows = take_rows(tokens, places, self.experts.gradient_divisor)
            outputs = self.experts(rows, Segments(choices.load, choices.most))
            return mix_rows(outputs, choices.gate, places, self.experts.gradient_divisor)
        if not torch.compiler.is_compiling() or is_traced():
            return self._mix_by_counts(tokens, choices, dispatcher)
        # counts that the host reads differ in each batch, and compiled code would be written anew for them
        from ..ops.uncompiled import run_uncompiled

        output: Tensor = run_uncompiled(self._mix_by_counts, tokens, choices, dispatcher)
        return output

    def _mix_by_counts(self, tokens: Tensor, choices: Choices, dispatcher: Dispatcher) -> Tensor:
        """``_mix_choices`` with the numbers of the experts' rows on the host."""
        dispatched = dispatcher.dispatch(tokens[choices.token], choices.load)
        dispatched.segments.gradient_divisor = self.experts.gradient_divisor
        outputs = dispatcher.collect(self.experts(dispatched.rows, dispatched.segments), dispatched)
        weighted = outputs * choices.weight.to(outputs.dtype).unsqueeze(1)
        return torch.zeros_like(tokens, dtype=outputs.dtype).index_add(0, choices.token, weighted)

    def _stays_on_device(self, tokens: Tensor, dispatcher: Dispatcher) -> bool:
        """Whether the counts of the experts' rows need not come to the host. The log says once why they do on a GPU."""
        refusal = rows_refusal(tokens.dtype, tokens.device) or dispatcher.refusal or self.experts.rows_refusal()
        if refusal is not None and tokens.is_cuda and not torch.compiler.is_compiling():
            log_choice("experts", "rows counted on the host", (("the kernel path", refusal),))
        return refusal is None and len(tokens) > 0

    def _route(self, tokens: Tensor, padding: Tensor | None) -> tuple[Routing, tuple[Tensor, Tensor | None]]:
        """The routing, and the router's scores."""
        options = self.options
        scores, balance_scores = self.gate(tokens)
        if options.use_fp32:
            scores = scores.float() if scores.dtype != torch.float64 else scores
        routing = route(
            scores,
            top_k=options.top_k,
            capacity=options.capacity(len(tokens), self.experts.split.count, training=self.training),
            policy=options.policy_for(training=self.training),
            normalize_before_dropping=options.normalize_before_dropping,
            prioritized=options.prioritized,
            padding=padding,
        )
        return routing, (scores, balance_scores)


def _report(routing: Routing, scores: Tensor, balance_scores: Tensor | None) -> RoutingReport:
    balance = None if balance_scores is None else balance_scores.to(scores.dtype).softmax(-1)
    return RoutingReport(balance_loss(routing, balance), z_loss(scores), statistics(routing))
