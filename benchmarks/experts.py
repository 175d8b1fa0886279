"""One layer with experts side by side: agreement first, then time and memory of forward and backward.

Width 512, feed-forward 2,048, top-2. All sides take the same weights; ours runs as with torchscale_compatible, whose
routing is the official one. A dense feed-forward network on as many rows as tokens have choices is the arithmetic.
"""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.measure import in_fresh_process, peak_resident_bytes, resident_bytes, time_in_turns
from benchmarks.official import load_official
from benchmarks.report import DENSE, OFFICIAL, OURS, DisagreementError, Row
from torchscale_fairseq.core.layers.experts import Experts
from torchscale_fairseq.core.layers.feed_forward import FeedForwardNetwork
from torchscale_fairseq.core.layers.moe import MixtureOfExperts, RoutingOptions
from torchscale_fairseq.core.layers.router import LinearRouter
from torchscale_fairseq.core.parallel.groups import ExpertSplit

ALLOWED = 1e-4
"""Largest difference of outputs, and of each gradient relative to its largest entry: the bound of tests/parity."""


class ExpertCase(NamedTuple):
    """One comparison."""

    tokens: int
    experts: int
    width: int = 512
    ffn_width: int = 2048
    top_k: int = 2
    seed: int = 1

    @property
    def title(self) -> str:
        """Name in the table."""
        return f"{self.experts} experts, top-{self.top_k}, {self.tokens} tokens"


def compare_experts(
    case: ExpertCase, sides: list[str], *, repeats: int, torchscale: Path | None
) -> tuple[list[Row], list[str]]:
    """Check that the sides agree on a few hundred tokens, then measure them.

    Args:
        case: what to run.
        sides: OFFICIAL, OURS and DENSE, as far as wanted.
        repeats: timed steps per side.
        torchscale: as for ``load_official``.

    Raises:
        DisagreementError: outputs or gradients differ; nothing was timed.
    """
    notes = []
    if OFFICIAL in sides:
        notes = [check_agreement(case._replace(tokens=min(case.tokens, 512)))]
    seconds = time_in_turns({side: step_of(side, case) for side in sides}, warmups=1, repeats=repeats)
    memory = {side: in_fresh_process(memory_alone, side, case, torchscale) for side in sides}
    rows = [Row(case.title, side, seconds[side], memory[side], case.tokens, "tokens") for side in sides]
    return rows, notes


def compare_counts(cases: list[ExpertCase], *, repeats: int) -> tuple[list[Row], list[str]]:
    """Layers of ours that differ in the number of experts, and the dense network, in turns."""
    steps = {f"{OURS}, {case.experts} experts": step_of(OURS, case) for case in cases}
    seconds = time_in_turns({**steps, DENSE: step_of(DENSE, cases[0])}, warmups=1, repeats=repeats)
    title = f"top-{cases[0].top_k}, {cases[0].tokens} tokens"
    return [Row(title, side, time, None, cases[0].tokens, "tokens") for side, time in seconds.items()], []


def step_of(side: str, case: ExpertCase) -> Callable[[], Any]:
    """A forward and backward pass of a side's fresh layer."""
    x = inputs(case, rows=case.tokens * case.top_k if side == DENSE else case.tokens)
    return partial(step, build(side, case), x)


def step(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Forward, and backward of a fixed direction with the balance loss; the output and the gradient of x."""
    layer.zero_grad()
    x.grad = None
    output = layer(x)
    y, balance = output if isinstance(output, tuple) else (output, None)
    balance = getattr(balance, "balance_loss", balance)
    loss = y.square().mean()
    (loss if balance is None else loss + 0.01 * balance).backward()
    assert x.grad is not None
    return y.detach(), x.grad


def inputs(case: ExpertCase, *, rows: int) -> Tensor:
    """(1, rows, width)."""
    generator = torch.Generator().manual_seed(case.seed)
    return torch.randn(1, rows, case.width, generator=generator).requires_grad_()


def build(side: str, case: ExpertCase) -> nn.Module:
    """A side's layer in training mode: official after ``load_official``."""
    torch.manual_seed(case.seed)
    if side == DENSE:
        return FeedForwardNetwork(case.width, case.ffn_width, inner_norm=nn.LayerNorm(case.ffn_width))
    return _official(case) if side == OFFICIAL else _ours(case)


def check_agreement(case: ExpertCase) -> str:
    """A sentence on how far the sides agree."""
    official, ours = build(OFFICIAL, case), build(OURS, case)
    ours.load_state_dict(official.state_dict())
    x = inputs(case, rows=case.tokens)
    (y, dx), (our_y, our_dx) = (tuple(t.clone() for t in step(layer, x)) for layer in (official, ours))
    difference = (our_y - y).abs().max().item()
    gradients = {name: p.grad for name, p in official.named_parameters()}
    found: dict[str, tuple[Tensor, Tensor | None]] = {"x": (our_dx, dx)}
    for name, parameter in ours.named_parameters():
        if parameter.grad is None:
            raise DisagreementError(f"{case.title}: {name} has no gradient")
        before, stacked, rest = name.rpartition("experts.")
        parts = [(name, parameter.grad)]
        if stacked:
            parts = [(f"{before}experts.{index}.{rest}", g) for index, g in enumerate(parameter.grad)]
        found |= {part: (gradient, gradients[part]) for part, gradient in parts}
    worst = max(_relative(a, b) for a, b in found.values())
    if max(difference, worst) > ALLOWED:
        raise DisagreementError(f"{case.title}: outputs differ by {difference:.1e}, gradients by up to {worst:.1e}")
    return f"{case.title}: outputs differ by {difference:.0e}, gradients by up to {worst:.0e} of their largest entry."


def _relative(actual: Tensor, expected: Tensor | None) -> float:
    if expected is None:  # an expert without tokens gets none officially
        return float(actual.abs().max())
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def memory_alone(side: str, case: ExpertCase, torchscale: Path | None) -> int:
    """Peak bytes above those of the process before the layer was built; for a process of its own."""
    if side == OFFICIAL:
        load_official(torchscale)
    prepare_official_experts()
    step(build(side, case._replace(tokens=8)), inputs(case, rows=8))
    before = resident_bytes()
    step_of(side, case)()
    return peak_resident_bytes() - before


def prepare_official_experts() -> None:
    """What the official layer needs on a CPU: a process group, and counts of expert indices in floating point."""
    if not dist.is_initialized():
        store = tempfile.NamedTemporaryFile(delete=False)  # noqa: SIM115 - outlives this function
        dist.init_process_group("gloo", init_method=f"file://{store.name}", rank=0, world_size=1)
    setattr(torch, "histc", _histc_of_floats)  # noqa: B010 - the type checker knows torch.histc as a function


_histc = torch.histc


def _histc_of_floats(x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
    return _histc(x.float(), *arguments, **keywords)


def _official(case: ExpertCase) -> nn.Module:
    from types import SimpleNamespace

    from torchscale.component.feedforward_network import make_experts
    from torchscale.component.xmoe.moe_layer import MOELayer
    from torchscale.component.xmoe.routing import Top2Gate

    arguments = SimpleNamespace(
        moe_expert_count=case.experts,
        ddp_rank=0,
        activation_fn="gelu",
        dropout=0.0,
        activation_dropout=0.0,
        layernorm_eps=1e-5,
        subln=True,
    )
    gate = Top2Gate(case.width, case.experts, use_fp32=True, second_expert_policy="all")
    return MOELayer(gate, make_experts(arguments, case.width, case.ffn_width), arguments)


def _ours(case: ExpertCase) -> MixtureOfExperts:
    options: Mapping[str, Any] = {
        "top_k": case.top_k,
        "capacity_factor": 1.0,
        "eval_capacity_token_fraction": None,
        "policy": "all",
        "normalize_before_dropping": False,
        "prioritized": False,
        "use_fp32": True,
    }
    experts = Experts(
        ExpertSplit(case.experts),
        case.width,
        case.ffn_width,
        gated=False,
        activation_fn="gelu",
        dropout=0.0,
        norm="layernorm",
        eps=1e-5,
    )
    return MixtureOfExperts(LinearRouter(case.width, case.experts), experts, RoutingOptions(**options))
