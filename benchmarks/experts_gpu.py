"""A layer with experts in bfloat16 on a GPU, forward and backward: agreement first, then time and TFLOP/s.

    python -m benchmarks.experts_gpu                                   # 32 gated experts, 40,960 tokens
    python -m benchmarks.experts_gpu --inner 3072 --subln --tokens 16384
    python -m benchmarks.experts_gpu --device cpu --tokens 64 --width 16 --inner 32 --experts 4 --repeats 1

Every token keeps its top-2 choices. TFLOP/s count the products of the experts alone, forward and backward; the bound
is those products by torch's grouped kernel, with nothing around them.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.measure import time_in_turns
from benchmarks.report import DisagreementError, machine, versions
from torchscale_fairseq.core.layers import moe
from torchscale_fairseq.core.layers.experts import Experts
from torchscale_fairseq.core.layers.moe import MixtureOfExperts, RoutingOptions
from torchscale_fairseq.core.layers.router import LinearRouter
from torchscale_fairseq.core.ops.grouped_products import grouped_mm
from torchscale_fairseq.core.parallel.groups import ExpertSplit

ALLOWED = 0.02
"""Largest relative RMS error from float64: about four roundings to 8 bits, with room."""
STEPS = 10
"""Steps per measurement, so that the host runs ahead as it does in training."""


def build(options: argparse.Namespace, **routing: Any) -> MixtureOfExperts:
    """The layer, with the same weights each time."""
    torch.manual_seed(1)
    names: dict[str, Any] = {"top_k": options.top_k, "capacity_factor": None, "policy": "all", "use_fp32": True}
    names |= {"eval_capacity_token_fraction": None, "normalize_before_dropping": False, "prioritized": False, **routing}
    norm, activation = ("layernorm", "gelu") if options.subln else (None, "swish")
    experts = Experts(
        ExpertSplit(options.experts),
        options.width,
        options.inner,
        gated=not options.subln,
        activation_fn=activation,
        dropout=0.0,
        norm=norm,
        eps=1e-5,
    )
    return MixtureOfExperts(LinearRouter(options.width, options.experts), experts, RoutingOptions(**names))


def step(layer: MixtureOfExperts, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients of a forward and backward pass."""
    layer.zero_grad()
    x.grad = None
    y, report = layer(x)
    torch.autograd.backward([y, report.balance_loss], [x.detach(), torch.ones_like(report.balance_loss)])
    assert x.grad is not None
    gradients = {name: p.grad for name, p in layer.experts.named_parameters() if p.grad is not None}
    return {"output": y.detach(), "x": x.grad, **gradients}


def check_agreement(options: argparse.Namespace) -> str:
    """A sentence on how far the layer is from float64, where all tokens go to all experts.

    Raises:
        DisagreementError: too far.
    """
    options = argparse.Namespace(**{**vars(options), "experts": 4, "top_k": 4, "tokens": 500})
    layer = build(options).bfloat16()
    exact = build(options).double()
    exact.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    x = torch.randn(1, options.tokens, options.width).bfloat16()
    wanted = step(exact, x.double().requires_grad_())
    found = step(layer.to(options.device), x.to(options.device).requires_grad_())
    errors = {k: float((found[k].cpu().double() - v).norm() / v.norm()) for k, v in wanted.items()}
    if max(errors.values()) > ALLOWED:
        raise DisagreementError(f"relative RMS errors {errors}")
    return f"Relative RMS error from float64: at most {max(errors.values()):.1e}."


def products(options: argparse.Namespace) -> Callable[[], None]:
    """The products of the experts, forward and backward, on evenly filled groups."""
    rows, width, inner, experts = options.tokens * options.top_k, options.width, options.inner, options.experts
    ends = torch.arange(1, experts + 1, device=options.device, dtype=torch.int32) * (rows // experts)
    make: dict[str, Any] = {"device": options.device, "dtype": torch.bfloat16}
    narrow, wide = torch.randn(rows, width, **make), torch.randn(rows, inner, **make)
    up, down = torch.randn(experts, inner, width, **make), torch.randn(experts, width, inner, **make)

    def run() -> None:
        for _ in range(1 if options.subln else 2):
            grouped_mm(narrow, up.transpose(1, 2), offs=ends)
            grouped_mm(wide, up, offs=ends)
            grouped_mm(wide.T, narrow, offs=ends)
        grouped_mm(wide, down.transpose(1, 2), offs=ends)
        grouped_mm(narrow, down, offs=ends)
        grouped_mm(narrow.T, wide, offs=ends)

    return run


def sides(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Everything that is timed."""
    x = torch.randn(1, options.tokens, options.width, device=options.device, dtype=torch.bfloat16).requires_grad_()
    layer, compiled = (build(options).bfloat16().to(options.device) for _ in range(2))
    compiled.compile()

    def counted_on_the_host() -> None:
        with mock.patch.object(moe, "rows_refusal", lambda *_: "is switched off"):
            step(layer, x)

    timed = {
        "products alone": products(options),
        "rows counted on the host": counted_on_the_host,
        "ours": lambda: step(layer, x),
    }
    return timed if options.device == "cpu" else {**timed, "ours, compiled": lambda: step(compiled, x)}


def main(words: list[str]) -> int:
    """Print the table."""
    options = parse_options(words)
    print(f"{machine(options.device)}; {versions()}\n\n{check_agreement(options)}\n")
    steps = sides(options)
    repeated = {name: lambda run=run: [run() for _ in range(STEPS)] for name, run in steps.items()}
    seconds = time_in_turns(repeated, warmups=2, repeats=options.repeats)
    flops = 6 * (2 if options.subln else 3) * options.tokens * options.top_k * options.width * options.inner
    print("| | ms | TFLOP/s |\n|---|---|---|")
    for name, several in seconds.items():
        print(f"| {name} | {several / STEPS * 1e3:.2f} | {flops / several * STEPS / 1e12:.0f} |")
    if options.profile:
        with torch.profiler.profile() as profile:
            for _ in range(STEPS):
                steps["ours"]()
            torch.cuda.synchronize()
        table = profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=70)
        print(table)
    return 0


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="experts_gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("tokens", 40960), ("experts", 32), ("top-k", 2), ("width", 768), ("inner", 1024)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"({value})")
    parser.add_argument("--subln", action="store_true", help="GELU and SubLN's norm in place of gated SiLU")
    parser.add_argument("--repeats", type=int, default=10, help="measurements per side (10)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="cpu leaves out compiled code (cuda)")
    parser.add_argument("--profile", action="store_true", help="print where the time of ours goes")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
