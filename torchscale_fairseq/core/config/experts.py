"""Options of mixtures of experts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..ops.routing import POLICIES
from .option import Config, check_range, option

EXPERT_CLIPS = ("sparse", "plain")
EXPERT_GRADIENTS = ("world_size", "sqrt_world_size")
EXPERT_OPTIONS = (
    "moe_expert_count",
    "moe_expert_ffn_dim",
    "moe_top_k",
    "moe_top1_expert",
    "moe_dropless",
    "use_xmoe",
    "moe_routing_dim",
    "moe_freeze_routing",
)
"""Options that mean nothing in a model without experts."""


@dataclass(frozen=True, kw_only=True)
class ExpertOptions(Config):
    """Options of mixtures of experts."""

    if TYPE_CHECKING:
        torchscale_compatible: bool  # of the classes below

    moe_freq: int = option(0, "every so many layers one has experts; 0: none has")
    moe_expert_count: int = option(0, "experts per layer that has them")
    moe_expert_ffn_dim: int | None = option(
        None, "inner width of an expert; unset: that of the other feed-forward networks"
    )
    moe_top_k: int | None = option(None, "experts per token; unset: 2")
    moe_top1_expert: bool = option(False, "TorchScale's spelling of moe_top_k=1")
    moe_capacity_factor: float = option(
        1.0, "places per expert in training, relative to an even share of all tokens' choices"
    )
    moe_dropless: bool = option(False, "a place for every token in training too")
    moe_eval_capacity_token_fraction: float | None = option(
        None,
        "places per expert in evaluation, as a fraction of the tokens; negative: as in training; unset: dropless "
        "(0.25 with torchscale_compatible)",
    )
    moe_second_expert_policy: str | None = option(
        None,
        "how experts after the first are chosen in training: the best of them, drawn by score, or the best kept by "
        "chance; unset: all (random with torchscale_compatible)",
        choices=POLICIES,
    )
    moe_normalize_gate_prob_before_dropping: bool | None = option(
        None, "the weights of a token's experts sum to one before some are dropped, not after; unset: with use_xmoe"
    )
    moe_batch_prioritized_routing: bool = option(False, "tokens queue for experts by their largest gate")
    moe_gating_use_fp32: bool = option(False, "route in float32 under a lower precision")
    use_xmoe: bool = option(False, "X-MoE's router: cosine similarity in a low dimension")
    moe_routing_dim: int | None = option(
        None, "dimension of X-MoE's router; unset: half the experts, at least 4 (16 with torchscale_compatible)"
    )
    moe_expert_dropout: float | None = option(
        None, "dropout after the activation in experts; unset: activation_dropout"
    )
    moe_freeze_routing: bool = option(False, "routers do not learn, for fine-tuning")
    moe_normalize_expert_grad: str = option(
        "world_size", "what gradients of experts are divided by with several processes", choices=EXPERT_GRADIENTS
    )
    moe_clip: str = option(
        "sparse",
        "how experts count in the norm by which gradients are clipped: by 1 / moe_expert_count (SparseClip), or as "
        "all else",
        choices=EXPERT_CLIPS,
    )

    def _check(self) -> None:
        super()._check()
        for side in self._sides:
            freq, layers = self.expert_freq(side), getattr(self, f"{side}_layers")
            check_range("moe_freq", freq, 0)
            if freq > layers:
                own = f"{side}_moe_freq"
                name = "moe_freq" if getattr(self, own, None) is None else own
                raise self._error(
                    name,
                    f"{{{name}()}} is above {{{side}_layers()}}, so that no layer would have experts",
                    {name: layers},
                    {name: None},
                )
        if not self.has_experts:
            for name in EXPERT_OPTIONS:
                value = getattr(self, name)
                if value not in (None, False, 0):
                    raise self._error(
                        name,
                        f"{{{name}()}} has no use without experts",
                        {"moe_freq": 1, "moe_expert_count": self.moe_expert_count or max(8, self.expert_top_k)},
                        {name: None},
                    )
            return
        if self.moe_expert_count < 1:
            raise self._error(
                "moe_expert_count",
                "{moe_freq} requests experts: {moe_expert_count()} must be at least 1",
                {"moe_expert_count": max(8, self.expert_top_k)},
            )
        if self.moe_top1_expert and self.moe_top_k not in (None, 1):
            raise self._error(
                "moe_top1_expert",
                "{moe_top1_expert} contradicts {moe_top_k()}",
                {"moe_top1_expert": None},
                {"moe_top_k": None},
            )
        if not 1 <= self.expert_top_k <= self.moe_expert_count:
            raise self._error(
                "moe_top_k",
                "{moe_top_k()} must be between 1 and {moe_expert_count()}",
                {"moe_top_k": 1},
                moe_top_k=self.expert_top_k,
            )
        if self.moe_capacity_factor <= 0:
            raise self._error(
                "moe_capacity_factor", "{moe_capacity_factor()} must be above 0", {"moe_capacity_factor": 1.0}
            )
        fraction = self.moe_eval_capacity_token_fraction
        if fraction is not None and (fraction == 0 or fraction > 1):
            raise self._error(
                "moe_eval_capacity_token_fraction",
                "{moe_eval_capacity_token_fraction()} must be in (0, 1], or negative for the capacity of training",
                {"moe_eval_capacity_token_fraction": 0.25},
            )
        for name in ("moe_expert_ffn_dim", "moe_routing_dim"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1)
        if self.moe_expert_dropout is not None:
            check_range("moe_expert_dropout", self.moe_expert_dropout, 0.0, 1.0)
        if self.moe_routing_dim is not None and (self.torchscale_compatible or not self.use_xmoe):
            raise self._error(
                "moe_routing_dim",
                "{moe_routing_dim()} belongs to {use_xmoe} without {torchscale_compatible}",
                {"moe_routing_dim": None},
            )
        if getattr(self, "multiway", False):
            raise self._error(
                "multiway",
                "{multiway} and {moe_freq} cannot both be on: both replace the feed-forward network",
                {"multiway": None},
                {"moe_freq": None},
            )

    def expert_freq(self, side: str) -> int:
        """Every so many layers of a side one has experts; 0: none."""
        own = getattr(self, f"{side}_moe_freq", None)
        return self.moe_freq if own is None else int(own)

    @property
    def has_experts(self) -> bool:
        """Whether any layer has experts."""
        return any(self.expert_freq(side) > 0 for side in self._sides)

    @property
    def _sides(self) -> list[str]:
        return [side for side in ("encoder", "decoder") if hasattr(self, f"{side}_layers")]

    @property
    def expert_top_k(self) -> int:
        """Experts per token."""
        return 1 if self.moe_top1_expert else self.moe_top_k or 2
