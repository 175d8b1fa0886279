"""Which experts each token goes to, and with what weight.

Axes: (tokens) of one batch, flattened; (experts); (k) choices of a token, best first.

GShard, arXiv:2006.16668, sec. 2.2; Switch Transformer, arXiv:2101.03961, sec. 2.2.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

POLICIES = ("all", "sampling", "random")


class Choices(Protocol):
    """Pairs of a token and an expert, as far as rows are taken there and back. Those that are kept have rows, in the
    order of the experts."""

    @property
    def gate(self) -> Tensor:
        """(tokens, k), weight of the expert's output. Carries the gradient."""

    @property
    def load(self) -> Tensor:
        """(experts,), kept choices per expert."""

    @property
    def most(self) -> int:
        """Upper bound of the number of kept choices, known without waiting for the device."""

    @property
    def row(self) -> Tensor:
        """(tokens, k) int32, the row of each choice, -1 for choices that are not kept."""

    @property
    def token(self) -> Tensor:
        """(kept choices,), the token of each row; waits for the device."""

    @property
    def weight(self) -> Tensor:
        """(kept choices,), the gate of each row; waits for the device."""


@dataclass(frozen=True)
class Routing:
    """The decision for a batch: choices among all experts."""

    expert: Tensor
    """(tokens, k), the chosen experts."""
    gate: Tensor
    """(tokens, k), weight of the expert's output; zero where the choice is not kept. Carries the gradient."""
    candidate: Tensor
    """(tokens, k), True where the token requests a place."""
    kept: Tensor
    """(tokens, k), True where it got one."""
    queue: Tensor
    """(k * tokens,), indices into the choices in the order (k, tokens), sorted by expert, then by their turn; those of
    no candidates come last."""
    load: Tensor
    """(experts,), kept choices per expert."""
    probability: Tensor
    """(tokens, experts), softmax of the router's scores."""
    most: int
    """Upper bound of the number of kept choices, known without waiting for the device."""
    capacity: int | None
    """Places per expert; None: one for everybody."""

    @cached_property
    def order(self) -> Tensor:
        """(kept choices,), the queue without the choices that are not kept; waits for the device."""
        return self.queue[self.kept.T.reshape(-1)[self.queue]]

    @property
    def row(self) -> Tensor:
        """(tokens, k) int32, where in ``order`` each choice stands, -1 for choices that are not kept."""
        kept = self.kept.T.reshape(-1)[self.queue]
        place = torch.where(kept, kept.cumsum(0) - 1, -1).int()
        return torch.empty_like(place).scatter_(0, self.queue, place).view_as(self.kept.T).T.contiguous()

    @property
    def token(self) -> Tensor:
        """(kept choices,), the token of each, in the same order."""
        return self.order % self.expert.size(0)

    @property
    def weight(self) -> Tensor:
        """(kept choices,), the gate of each, in the same order."""
        return self.gate.T.reshape(-1)[self.order]


def capacity_of(tokens: int, experts: int, *, top_k: int, factor: float) -> int:
    """Places per expert in training: ``factor`` times an even share of k choices per token, rounded down."""
    return int(factor * top_k * math.ceil(tokens / experts))


def route(
    logits: Tensor,
    *,
    top_k: int,
    capacity: int | None = None,
    policy: str = "all",
    normalize_before_dropping: bool = False,
    prioritized: bool = False,
    padding: Tensor | None = None,
) -> Routing:
    """Top-k routing.

    All first choices queue before all second ones, in the order of tokens; an expert keeps those that find a place.
    With k above 1 the weights of a token's choices sum to one, before or after some are dropped.

    Args:
        logits: (tokens, experts), the router's scores; their dtype is that of the result.
        top_k: choices per token.
        capacity: places per expert; None: one for everybody.
        policy: how choices after the first come about: "all" takes the best; "sampling" draws them by the scores
            (Gumbel noise); "random" takes the best, each with probability k times its gate.
        normalize_before_dropping: weights sum to one over all choices, not over the kept ones.
        prioritized: tokens queue by their largest gate (batch prioritised routing, arXiv:2106.05974, sec. 4).
        padding: (tokens,), True where a token requests no place.
    """
    probability = logits.softmax(-1)
    expert = _choose(logits, probability, top_k, policy)
    gate = probability.gather(1, expert)
    if normalize_before_dropping and top_k > 1:
        gate = _normalized(gate)
    candidate = torch.ones_like(expert, dtype=torch.bool)
    if policy == "random":
        candidate[:, 1:] = top_k * gate[:, 1:].detach() > torch.rand_like(gate[:, 1:])
    if padding is not None:
        candidate &= ~padding.unsqueeze(1)
    priority = probability.detach().amax(1) if prioritized else None
    kept, queue, load = _admit(expert, candidate, logits.size(1), capacity, priority)
    gate = gate * kept
    if not normalize_before_dropping and top_k > 1:
        gate = _normalized(gate)
    most = expert.numel() if capacity is None else min(expert.numel(), logits.size(1) * capacity)
    return Routing(expert, gate, candidate, kept, queue, load, probability, most, capacity)


def balance_loss(routing: Routing, probability: Tensor | None = None) -> Tensor:
    """experts x sum over experts of (share of first choices) x (mean probability): 1 if even, more if not.

    Switch Transformer, arXiv:2101.03961, eq. 4.

    Args:
        routing: of the batch.
        probability: (tokens, experts), if not the routing's own.
    """
    probability = routing.probability if probability is None else probability
    experts = probability.size(1)
    first = torch.zeros_like(probability).scatter_(
        1, routing.expert[:, :1], routing.candidate[:, :1].to(probability.dtype)
    )
    return experts * (_mean(probability) * _mean(first)).sum()


def z_loss(logits: Tensor) -> Tensor:
    """Mean square of log-sum-exp of the scores, (tokens, experts). ST-MoE, arXiv:2202.08906, eq. 5."""
    return _mean(logits.logsumexp(-1).square())


def statistics(routing: Routing) -> dict[str, Tensor]:
    """Statistics of a routing for the log, as scalars without gradient.

    ``entropy`` of the gate, mean over tokens, in nats; ``dropped``, percent of the choices that found no place;
    ``load_most`` and ``load_least``, kept choices of the most and least used expert in percent of an even share;
    ``unused``, experts that kept none.
    """
    with torch.no_grad():
        p = routing.probability.float()
        load = routing.load.float()
        even = load.mean().clamp(min=torch.finfo(load.dtype).tiny)
        wanted = routing.candidate.sum()
        return {
            "entropy": -_mean((p * p.clamp(min=torch.finfo(p.dtype).eps).log()).sum(1)),
            "dropped": 100 * (wanted - routing.kept.sum()) / wanted.clamp(min=1),
            "load_most": 100 * load.max() / even,
            "load_least": 100 * load.min() / even,
            "unused": (routing.load == 0).sum().float(),
        }


def _choose(logits: Tensor, probability: Tensor, top_k: int, policy: str) -> Tensor:
    """(tokens, k) experts; ties go to the lower index."""
    chosen = [probability.argmax(1, keepdim=True)]
    if top_k > 1:
        scores = logits.detach()
        if policy == "sampling":
            scores = scores + torch.distributions.Gumbel(scores.new_zeros(()), scores.new_ones(())).sample(scores.shape)
        for _ in range(top_k - 1):
            scores = scores.scatter(1, chosen[-1], float("-inf"))
            chosen.append(scores.argmax(1, keepdim=True))
    return torch.cat(chosen, 1)


def _mean(x: Tensor) -> Tensor:
    """Over tokens; zero if there are none."""
    return x.sum(0) / max(len(x), 1)


def _normalized(gate: Tensor) -> Tensor:
    return gate / gate.sum(1, keepdim=True).clamp(min=torch.finfo(gate.dtype).eps)


def _admit(
    expert: Tensor, candidate: Tensor, experts: int, capacity: int | None, priority: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``kept``, ``queue`` and ``load`` of ``Routing``; tokens of higher priority queue first."""
    tokens = expert.size(0)
    wanted = torch.where(candidate, expert, experts).T.int()  # those who ask for nothing queue behind the last expert
    if priority is None:
        queue = wanted.reshape(-1).argsort(stable=True)
    else:
        by_priority = priority.argsort(descending=True, stable=True)
        position = wanted[:, by_priority].reshape(-1).argsort(stable=True)
        queue = position // tokens * tokens + by_priority[position % tokens]
    sorted_experts = wanted.reshape(-1)[queue]
    first = torch.searchsorted(sorted_experts, torch.arange(experts + 1, dtype=torch.int32, device=queue.device))
    load = first.diff()
    admitted = sorted_experts < experts
    if capacity is not None:
        admitted &= torch.arange(queue.numel(), device=queue.device) - first.index_select(0, sorted_experts) < capacity
        load = load.clamp(max=capacity)
    kept = torch.zeros_like(queue, dtype=torch.bool).scatter_(0, queue, admitted)
    return kept.view_as(wanted).T, queue, load
