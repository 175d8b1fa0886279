"""Options of mixtures of experts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..ops.routing import POLICIES
from .option import Config, check_probability, check_range, option

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
OF_TRAINED_EXPERTS = (
    "moe_capacity_factor",
    "moe_eval_capacity_token_fraction",
    "moe_second_expert_policy",
    "moe_normalize_gate_prob_before_dropping",
    "moe_batch_prioritized_routing",
    "moe_gating_use_fp32",
    "moe_expert_dropout",
    "moe_normalize_expert_grad",
    "moe_clip",
)
"""Others that mean nothing there. A model without experts can be built with them, and training refuses them."""


@dataclass(frozen=True, kw_only=True)
class ExpertOptions(Config):
    """Options of mixtures of experts."""

    if TYPE_CHECKING:
        torchscale_compatible: bool  # of the classes below

    moe_freq: int = option(
        0, "make every N-th layer a mixture-of-experts layer, of which layer N is the first; 0: none"
    )
    moe_expert_count: int = option(0, "experts per mixture-of-experts layer")
    moe_expert_ffn_dim: int | None = option(
        None, "inner width of each expert (default: that of the other feed-forward networks)"
    )
    moe_top_k: int | None = option(None, "experts per token (default: 2)")
    moe_top1_expert: bool = option(False, "one expert per token; TorchScale's spelling of moe_top_k=1")
    moe_capacity_factor: float = option(
        1.0,
        (
            "capacity of each expert in training, in assignments of a token to an expert per batch, as a multiple of "
            "an even share (moe_top_k times tokens, divided by the number of experts). Assignments beyond it are "
            "dropped: the token skips that expert"
        ),
    )
    moe_dropless: bool = option(
        False,
        (
            "drop no assignment of a token to an expert in training: experts have no capacity limit, and "
            "moe_capacity_factor has no effect"
        ),
    )
    moe_eval_capacity_token_fraction: float | None = option(
        None,
        (
            "capacity of each expert in evaluation, as a fraction of the batch's tokens; a negative value means "
            "the capacity of training (default: no limit; 0.25 with torchscale_compatible)"
        ),
    )
    moe_second_expert_policy: str | None = option(
        None,
        (
            "how experts after the first are chosen for a token in training. all: the ones with the highest "
            "gates; sampling: at random, with the gates as probabilities; random: the ones with the highest "
            "gates, but each is used only with probability moe_top_k times its gate, or always where that is above "
            "1 (default: all; random with torchscale_compatible)"
        ),
        choices=POLICIES,
    )
    moe_normalize_gate_prob_before_dropping: bool | None = option(
        None,
        (
            "scale the gates of each token to sum to one over all its chosen experts, and not only over those "
            "that had room for it (default: on with use_xmoe)"
        ),
    )
    moe_batch_prioritized_routing: bool = option(
        False,
        (
            "when more tokens choose an expert than it has room for, drop the tokens with the smallest gates "
            "instead of the last ones in the batch"
        ),
    )
    moe_gating_use_fp32: bool = option(False, "compute the router in float32 when the model trains in half precision")
    use_xmoe: bool = option(False, "use X-MoE's router (cosine similarity in a low dimension) instead of a linear one")
    moe_routing_dim: int | None = option(
        None,
        (
            "dimension of X-MoE's router (default: half the number of experts, at least 4; 16 with "
            "torchscale_compatible)"
        ),
    )
    moe_expert_dropout: float | None = option(
        None, "dropout probability after the activation in experts (default: that of activation_dropout)"
    )
    moe_freeze_routing: bool = option(False, "keep the routers' weights fixed, for fine-tuning")
    moe_normalize_expert_grad: str = option(
        "world_size",
        (
            "with several processes, divide the experts' gradients by the number of processes (world_size) or by "
            "its square root (sqrt_world_size)"
        ),
        choices=EXPERT_GRADIENTS,
    )
    moe_clip: str = option(
        "sparse",
        (
            "weight of the experts' gradients in the norm by which --clip-norm scales gradients: sparse counts "
            "them times 1 / moe_expert_count (SparseClip), plain counts them like all others"
        ),
        choices=EXPERT_CLIPS,
    )

    def _check(self) -> None:
        super()._check()
        for side in self.sides:
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
        if self.has_experts:
            self._check_choice_of_experts()
            self._check_capacity()
        else:
            self._refuse_options_of_experts()

    def _refuse_options_of_experts(self) -> None:
        given = [name for name in EXPERT_OPTIONS if getattr(self, name) not in (None, False, 0)]
        if given:
            condition = f"{{{given[0]}=}} has no use without experts"
            raise self._error(given[0], condition, *self._ways_to_experts(), dict.fromkeys(given))

    def _ways_to_experts(self) -> list[dict[str, Any]]:
        """Remedies that give every layer experts; none if other options contradict experts."""
        if self.moe_routing_dim is not None and self.torchscale_compatible:
            return []
        side = self.sides[0]
        freq = "moe_freq" if getattr(self, f"{side}_moe_freq", None) is None else f"{side}_moe_freq"
        fits = self.moe_expert_count >= max(1, self.expert_top_k)
        way = {freq: 1, "moe_expert_count": self.moe_expert_count if fits else max(8, self.expert_top_k)}
        return [way if self.moe_routing_dim is None else {**way, "use_xmoe": True}]

    def _check_choice_of_experts(self) -> None:
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
        if self.has_two_modalities:
            raise self._error(
                "multiway",
                "{multiway} and {moe_freq} cannot both be on: both replace the feed-forward network",
                {"multiway": None},
                {"moe_freq": None},
            )

    def _check_capacity(self) -> None:
        if self.moe_capacity_factor <= 0:
            raise self._error(
                "moe_capacity_factor", "{moe_capacity_factor()} must be above 0", {"moe_capacity_factor": 1.0}
            )
        fraction = self.moe_eval_capacity_token_fraction
        if fraction is not None and (fraction == 0 or fraction > 1):
            raise self._error(
                "moe_eval_capacity_token_fraction",
                "{moe_eval_capacity_token_fraction()} must be above 0 and at most 1, or negative for the capacity of "
                "training",
                {"moe_eval_capacity_token_fraction": 0.25},
            )
        for name in ("moe_expert_ffn_dim", "moe_routing_dim"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1)
        if self.moe_expert_dropout is not None:
            check_probability("moe_expert_dropout", self.moe_expert_dropout)
        if self.moe_routing_dim is not None and not self.use_xmoe:
            condition = "{moe_routing_dim=} is for {use_xmoe}"
            raise self._error("moe_routing_dim", condition, {"use_xmoe": True}, {"moe_routing_dim": None})
        if self.moe_routing_dim is not None and self.torchscale_compatible:
            raise self._error(
                "moe_routing_dim",
                "{moe_routing_dim=} contradicts {torchscale_compatible}, whose routers have 16 dimensions",
                {"moe_routing_dim": None},
                {"torchscale_compatible": None},
            )

    def expert_freq(self, side: str) -> int:
        """N for experts in every N-th layer of a side; 0: none."""
        own = getattr(self, f"{side}_moe_freq", None)
        return self.moe_freq if own is None else int(own)

    @property
    def has_experts(self) -> bool:
        """Whether any layer has experts."""
        return any(self.expert_freq(side) > 0 for side in self.sides)

    @property
    def sides(self) -> list[str]:
        """The sides that a model has: encoder, decoder, or both in this order."""
        return [side for side in ("encoder", "decoder") if hasattr(self, f"{side}_layers")]

    @property
    def has_two_modalities(self) -> bool:
        """Whether feed-forward networks are doubled, which only some configs can do."""
        return False

    @property
    def expert_top_k(self) -> int:
        """Experts per token."""
        return 1 if self.moe_top1_expert else self.moe_top_k or 2
