"""A layer of retention or attention with its projections, forward and backward, in bfloat16 on a GPU."""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.measure import if_it_fits, time_in_turns
from benchmarks.report import OFFICIAL, OURS, DisagreementError, Row
from benchmarks.retention_steps import ALLOWED, ATTENTION, Case, Step, step
from torchscale_fairseq.core.layers.attention import MultiheadAttention
from torchscale_fairseq.core.layers.attention_inputs import AttentionInputs
from torchscale_fairseq.core.layers.retention import MultiScaleRetention
from torchscale_fairseq.core.layers.retention_inputs import RetentionInputs
from torchscale_fairseq.core.ops.retention_tables import log_decays, token_counts

PLAIN, FLA = "ours, plain torch", "flash-linear-attention"
"""The sides that are ours without fla's kernel, and fla's own layer."""
EPS = 1e-6
DEVICE = "cuda"
ALLOWED_BFLOAT16 = 0.05
"""Largest difference in the mean from the same layer in float32: eight roundings or so to 8 bits, with room."""


def results_on_gpu(options: argparse.Namespace) -> Iterator[tuple[list[Row], list[str]]]:
    """Agreement at the shortest length, then rows of each length; a side that ran out of memory is not tried again."""
    sides = available_sides()
    case = Case(min(options.lengths), options.width, options.value_width, options.heads, device=DEVICE)
    yield [], check_agreement(case, sides)
    for length in options.lengths:
        tried = [side for side in sides if side != OFFICIAL or length <= options.official_up_to]
        rows = compare_on_gpu(replace(case, length=length), tried, options.repeats)
        yield rows, []
        sides = [side for side in sides if all(row.side != side or row.seconds is not None for row in rows)]


def compare_on_gpu(case: Case, sides: list[str], repeats: int) -> list[Row]:
    """Time the sides that fit in memory, and say how much each needs.

    Args:
        case: one length.
        sides: of which to measure.
        repeats: timed steps per side.
    """
    title = f"retention layer, training step, 1 x {case.length:,}"
    memory = {}
    for side in sides:  # the first step of each makes and tunes its kernels
        print(f"retention.py: {case.length} tokens, {side} ...", file=sys.stderr)
        memory[side] = if_it_fits(step_memory, case, side)
    print(f"retention.py: {case.length} tokens, all in turns ...", file=sys.stderr)
    steps = {side: layer_step(case, side) for side in sides if memory[side] is not None}
    seconds = time_in_turns(steps, warmups=2, repeats=repeats)
    return [
        Row(title, side, seconds.get(side), memory[side], case.length, "tokens", problem="out of memory")
        for side in sides
    ]


def available_sides() -> list[str]:
    """All of them, or without those of flash-linear-attention that are not installed: fla-core has no layers."""
    kernels = importlib.util.find_spec("fla") is not None
    layers = kernels and importlib.util.find_spec("fla.layers") is not None
    return [OFFICIAL, OURS, *([FLA] if layers else []), *([PLAIN] if kernels else []), ATTENTION]


def check_agreement(case: Case, sides: list[str]) -> list[str]:
    """Ours and the official layer in float32; ours and fla's in bfloat16 compared with ours in float32.

    Returns:
        Sentences about it.

    Raises:
        DisagreementError: they differ.
    """
    exact = layer_step(case, OURS, dtype=torch.float32, compatible=True)()
    official = layer_step(case, OFFICIAL, dtype=torch.float32)()
    pairs = {OFFICIAL: ("float32, of the largest entry", _largest_error(exact, official), ALLOWED)}
    exact = layer_step(case, PLAIN, dtype=torch.float32)()
    for side in sides:
        if side in (OURS, PLAIN, FLA):
            print(f"retention.py: comparing {side} ...", file=sys.stderr)
            found = layer_step(case, side)()
            error = max(mean_error(found[name], exact[name]) for name in ("output", "input"))
            pairs[side] = "bfloat16, in the mean", error, ALLOWED_BFLOAT16
    notes = []
    for side, (how, error, allowed) in pairs.items():
        notes.append(f"{side}: differs from ours in float32 by {error:.1g} ({how}; 1 x {case.length:,}).")
        if not error <= allowed:
            raise DisagreementError(f"{notes[-1]} Allowed: {allowed:.0e}")
    return notes


def step_memory(case: Case, side: str) -> int:
    """Bytes that the weights, their gradients, the input and a step take at most."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run = layer_step(case, side)
    for _ in range(2):
        run()
    return torch.cuda.max_memory_allocated() - before


def layer_step(case: Case, side: str, dtype: torch.dtype = torch.bfloat16, *, compatible: bool = False) -> Step:
    """A training step of one side.

    Args:
        case: sizes, length and seed.
        side: whose layer.
        dtype: of weights and input.
        compatible: ours computes what the official layer does.
    """
    torch.manual_seed(case.seed)
    ours = MultiScaleRetention(
        case.width,
        case.value_width,
        case.heads,
        norm_eps=EPS,
        clamp_scores=compatible,
        backend="torch" if side == PLAIN else "auto",
    ).to(case.device, dtype)
    build = {OFFICIAL: _official, FLA: _fla, ATTENTION: _attention}.get(side)
    layer: nn.Module
    if build is None:
        layer, forward = ours, _forward_of(ours, case, dtype, compatible)
    else:
        layer, forward = build(case, ours, dtype)
    x, weights = (x.detach().to(dtype) for x in (case.random(1, case.length, case.width) for _ in range(2)))
    return partial(step, forward, weights, {"input": x.requires_grad_(), **dict(layer.named_parameters())})


Forward = Callable[[Tensor], Tensor]


def _forward_of(layer: MultiScaleRetention, case: Case, dtype: torch.dtype, compatible: bool) -> Forward:
    inputs = retention_inputs(case, dtype, inclusive=compatible)
    return lambda x: layer(x, inputs)


def retention_inputs(
    case: Case, dtype: torch.dtype, *, seen: int = 0, inclusive: bool = False, **masks: Tensor
) -> RetentionInputs:
    """The inputs that the layers of a RetNet share, as it makes them once per forward pass.

    Args:
        case: sizes and length.
        dtype: of the layer.
        seen: tokens before these, of which there is a state.
        inclusive: as for ``retention_tables``.
        masks: ``padding_mask`` and ``document_starts``, as for ``RetentionInputs.of``.
    """
    log_decay = log_decays(case.heads, "powers", torch.device(case.device))
    earlier = torch.full((1,), seen, dtype=torch.long, device=case.device)
    counts = token_counts(case.length, earlier, **masks)
    x = torch.empty(1, case.length, case.width, dtype=dtype, device=case.device)
    key_dim = case.width // case.heads
    return RetentionInputs.of(
        x,
        counts,
        log_decay,
        key_dim,
        padding_mask=masks.get("padding_mask"),
        document_starts=masks.get("document_starts"),
        has_state=seen > 0,
        inclusive=inclusive,
    )


def _official(case: Case, ours: MultiScaleRetention, dtype: torch.dtype) -> tuple[nn.Module, Forward]:
    """Its tables are made in float32 and rounded, as in a model of that dtype, and are not part of a step."""
    from torchscale.architecture import config, retnet
    from torchscale.component.multiscale_retention import MultiScaleRetention as Official

    options = config.RetNetConfig(decoder_embed_dim=case.width, decoder_retention_heads=case.heads, layernorm_eps=EPS)
    layer = Official(options, case.width, case.value_width, case.heads).to(case.device, dtype)
    layer.load_state_dict(ours.state_dict())
    (sin, cos), mask = retnet.RetNetRelPos(options).to(case.device)(case.length)
    positions = (sin.to(dtype), cos.to(dtype)), mask.to(dtype)
    return layer, lambda x: layer(x, positions)


def _fla(case: Case, ours: MultiScaleRetention, dtype: torch.dtype) -> tuple[nn.Module, Forward]:
    """It turns the halves of a head's channels where ours turns neighbours, hence the order of rows."""
    from fla.layers import MultiScaleRetention as FlashRetention

    layer = FlashRetention(
        hidden_size=case.width, expand_v=case.value_width / case.width, num_heads=case.heads, norm_eps=EPS
    ).to(case.device, dtype)
    state = {name.replace("out_proj", "o_proj"): x for name, x in ours.state_dict().items()}
    for name in ("q_proj.weight", "k_proj.weight"):
        pairs = state[name].unflatten(0, (case.heads, -1, 2))
        state[name] = pairs.transpose(1, 2).flatten(0, 2)
    layer.load_state_dict(state, strict=False)
    return layer, lambda x: layer(x)[0]


def _attention(case: Case, ours: MultiScaleRetention, dtype: torch.dtype) -> tuple[nn.Module, Forward]:
    layer = MultiheadAttention(case.width, case.width // case.attention_head_dim).to(case.device, dtype)

    def forward(x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return layer(x, AttentionInputs(causal=True))

    return layer, forward


def _largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(((found[n] - x).abs().max() / x.abs().max()).item() for n, x in expected.items())


def mean_error(found: Tensor, expected: Tensor) -> float:
    """The root mean square of the tokens' relative differences.

    No token counts more than another. A document's first token sees only itself, and where a head's query hardly meets
    its own key, the head's norm divides by almost nothing: that token's gradient is larger than all others together,
    and as uncertain as the one product that it depends on.

    Args:
        found, expected: (batch, seq, width).
    """
    sizes = expected.norm(dim=-1)
    errors = (found.float() - expected).norm(dim=-1) / sizes.maximum(sizes.median())
    return errors.square().mean().sqrt().item()
