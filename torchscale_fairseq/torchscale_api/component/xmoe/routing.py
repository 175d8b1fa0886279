"""Gates that choose one or two experts per token, with TorchScale's return values."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....core.ops.routing import Routing, balance_loss, route, statistics

EVAL_CAPACITY_TOKEN_FRACTION = 0.25
GateResult = tuple[Tensor, Tensor, Tensor, dict[str, Any]]
"""Balance loss; weights (tokens, experts, capacity) that combine outputs; where they are not zero; and figures."""
_LENGTH = 1.5


def one_hot(indices: Tensor, num_classes: int, unsqueeze_indices: bool = False) -> Tensor:
    """(tokens,), or (tokens, 1) unless ``unsqueeze_indices``, to (tokens, num_classes)."""
    indices = indices if unsqueeze_indices else indices.squeeze(-1)
    return F.one_hot(indices, num_classes)


def entropy(probs: Tensor) -> Tensor:
    """Entropy of each row, in nats."""
    return -(probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log()).sum(-1)


def gumbel_rsample(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Gumbel noise."""
    zero, one = torch.zeros((), device=device), torch.ones((), device=device)
    return torch.distributions.Gumbel(zero, one).rsample(shape)


def top1gating(
    logits: Tensor,
    input_mask: Tensor | None = None,
    use_fp32: bool = False,
    capacity_factor: float = 1.0,
    eval_mode: bool = False,
    moe_eval_capacity_token_fraction: float = EVAL_CAPACITY_TOKEN_FRACTION,
    use_xmoe: bool = False,
    gate_obj: Any = None,
) -> GateResult:
    """The best expert of each token, by its probability.

    Args:
        logits: (tokens, experts).
        input_mask: (tokens,), True for tokens that go nowhere.
        use_fp32: route in float32.
        capacity_factor: places of an expert relative to an even share, in training.
        eval_mode, moe_eval_capacity_token_fraction: in evaluation, places as a share of the tokens, if above 0.
        use_xmoe, gate_obj: accepted; they change nothing here.
    """
    capacity = _capacity(
        logits,
        int(capacity_factor * math.ceil(len(logits) / logits.size(1))),
        eval_mode,
        moe_eval_capacity_token_fraction,
    )
    return _gated(logits, capacity, use_fp32, top_k=1, padding=input_mask)


def top2gating(
    logits: Tensor,
    input_mask: Tensor | None = None,
    use_fp32: bool = False,
    second_expert_policy: str = "sampling",
    normalize_gate_prob_before_dropping: bool = False,
    eval_mode: bool = False,
    moe_eval_capacity_token_fraction: float = EVAL_CAPACITY_TOKEN_FRACTION,
    batch_prioritized_routing: bool = False,
) -> GateResult:
    """The two best experts of each token; arguments as for ``top1gating``, and ``route`` of the core."""
    capacity = _capacity(
        logits, 2 * math.ceil(len(logits) / logits.size(1)), eval_mode, moe_eval_capacity_token_fraction
    )
    return _gated(
        logits,
        capacity,
        use_fp32,
        top_k=2,
        padding=input_mask,
        policy=second_expert_policy if second_expert_policy in ("sampling", "random") else "all",
        normalize_before_dropping=normalize_gate_prob_before_dropping,
        prioritized=batch_prioritized_routing,
    )


def _capacity(logits: Tensor, training: int, eval_mode: bool, fraction: float) -> int:
    return math.ceil(fraction * len(logits)) if eval_mode and fraction > 0 else training


def _gated(logits: Tensor, capacity: int, use_fp32: bool, *, padding: Tensor | None, **options: Any) -> GateResult:
    padding = None if padding is None or not bool(padding.any()) else padding.bool()
    routing = route(logits.float() if use_fp32 else logits, capacity=capacity, padding=padding, **options)
    combine = _dense(routing, capacity).to(logits.dtype)
    return balance_loss(routing).to(logits.dtype), combine, combine.bool(), _figures(routing)


def _dense(routing: Routing, capacity: int) -> Tensor:
    """Weights (tokens, experts, capacity)."""
    tokens, experts = routing.probability.shape
    first = routing.load.cumsum(0) - routing.load
    expert = torch.repeat_interleave(torch.arange(experts, device=first.device), routing.load)
    place = torch.arange(len(expert), device=first.device) - first[expert]
    dense = routing.gate.new_zeros(tokens, experts, capacity)
    return dense.index_put((routing.token, expert, place), routing.weight, accumulate=True)


@torch.no_grad()
def _figures(routing: Routing) -> dict[str, Any]:
    """TorchScale's figures: the entropy of the gate in nats; and for each choice the percentage of tokens that found no
    place, the experts that no token chose, and the percentages of tokens that chose the fifth of the experts with the
    most and the fifth with the fewest."""
    found: dict[str, Any] = {"entropy_gating": statistics(routing)["entropy"]}
    experts = routing.probability.size(1)
    fifth = math.ceil(experts / 5)
    for choice in range(routing.expert.size(1)):
        candidate, kept = routing.candidate[:, choice], routing.kept[:, choice]
        counts = torch.bincount(routing.expert[:, choice], minlength=experts).sort(descending=True).values
        shares = 100 * counts / len(routing.expert)
        name = f"expert{choice + 1}"
        found[f"overflow_{name}"] = 100 * (candidate & ~kept).sum() / candidate.sum().clamp_min(1)
        found[f"unused_{name}_count"] = (counts == 0).sum()
        found[f"{name}_balance_top"] = shares[:fifth].sum()
        found[f"{name}_balance_bottom"] = shares[-fifth:].sum()
    return found


class _Gate(nn.Module):
    """Scores of experts: a linear layer, or X-MoE's cosine in 16 dimensions."""

    wg: nn.Module | nn.Parameter

    def _build(self, model_dim: int, num_experts: int, use_xmoe: bool) -> None:
        self.use_xmoe = use_xmoe
        if use_xmoe:
            self.wg_reduction = nn.Linear(model_dim, 16, bias=False)
            self.wg = nn.Parameter(nn.init.orthogonal_(torch.empty(num_experts, 16), gain=0.32))
        else:
            self.wg = nn.Linear(model_dim, num_experts, bias=False)

    def _scores(self, x: Tensor) -> Tensor:
        if not self.use_xmoe:
            assert isinstance(self.wg, nn.Linear)
            scores: Tensor = self.wg(x)
            return scores
        assert isinstance(self.wg, nn.Parameter)
        rescaled = self.wg + (F.normalize(self.wg, dim=1) * _LENGTH - self.wg).detach()
        return self._make_finite(self._cosine(self.wg_reduction(x), rescaled))

    def _cosine(self, mat1: Tensor, mat2: Tensor, eps: float = 1e-4) -> Tensor:
        """Products of mat1, which TorchScale does not normalise, and normalised mat2."""
        return (mat1.float() @ F.normalize(mat2.float(), p=2.0, dim=1, eps=eps).T).to(mat1.dtype)

    def _make_finite(self, scores: Tensor) -> Tensor:
        return scores.nan_to_num(scores[scores.isfinite()].min().item()) if not scores.isfinite().all() else scores


class Top1Gate(_Gate):
    """Chooses one expert per token.

    Args:
        model_dim: width of tokens.
        num_experts: how many.
        others: as for ``top1gating``.
    """

    def __init__(
        self,
        model_dim: int,
        num_experts: int,
        use_fp32: bool = False,
        input_noise_type: str | None = None,
        capacity_factor: float = 1.0,
        moe_eval_capacity_token_fraction: float = EVAL_CAPACITY_TOKEN_FRACTION,
        use_xmoe: bool = False,
    ):
        super().__init__()
        self._build(model_dim, num_experts, use_xmoe)
        self.use_fp32 = use_fp32
        self.input_noise_type = input_noise_type
        self.capacity_factor = capacity_factor
        self.moe_eval_capacity_token_fraction = moe_eval_capacity_token_fraction

    def _get_gating_temperature(self, eps: float = 1e-4) -> Tensor:
        raise AttributeError("TorchScale's gates have no temperature; torchscale_fairseq's CosineRouter learns one.")

    def forward(self, input: Tensor, mask: Tensor | None = None) -> GateResult:
        """(tokens, model_dim) to what ``top1gating`` returns."""
        return top1gating(
            self._scores(input),
            mask,
            use_fp32=self.use_fp32,
            capacity_factor=self.capacity_factor,
            eval_mode=not self.training,
            moe_eval_capacity_token_fraction=self.moe_eval_capacity_token_fraction,
            use_xmoe=self.use_xmoe,
            gate_obj=self,
        )


class Top2Gate(_Gate):
    """Chooses two experts per token.

    Args:
        model_dim: width of tokens.
        num_experts: how many.
        others: as for ``top2gating``.
    """

    def __init__(
        self,
        model_dim: int,
        num_experts: int,
        use_fp32: bool = False,
        second_expert_policy: str = "sampling",
        normalize_gate_prob_before_dropping: bool = False,
        moe_eval_capacity_token_fraction: float = EVAL_CAPACITY_TOKEN_FRACTION,
        batch_prioritized_routing: bool = False,
        use_xmoe: bool = False,
    ):
        super().__init__()
        self._build(model_dim, num_experts, use_xmoe)
        self.use_fp32 = use_fp32
        self.second_expert_policy = second_expert_policy
        self.normalize_gate_prob_before_dropping = normalize_gate_prob_before_dropping
        self.moe_eval_capacity_token_fraction = moe_eval_capacity_token_fraction
        self.batch_prioritized_routing = batch_prioritized_routing

    def forward(self, input: Tensor, mask: Tensor | None = None) -> GateResult:
        """(tokens, model_dim) to what ``top2gating`` returns."""
        return top2gating(
            self._scores(input),
            mask,
            use_fp32=self.use_fp32,
            second_expert_policy=self.second_expert_policy,
            normalize_gate_prob_before_dropping=self.normalize_gate_prob_before_dropping,
            eval_mode=not self.training,
            moe_eval_capacity_token_fraction=self.moe_eval_capacity_token_fraction,
            batch_prioritized_routing=self.batch_prioritized_routing,
        )
