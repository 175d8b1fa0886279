"""Training steps side by side: agreement first, then time and memory."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.decoders import Case, build, flops_per_step, official_weights, training_step
from benchmarks.measure import if_it_fits, in_fresh_process, peak_resident_bytes, resident_bytes, time_in_turns
from benchmarks.official import load_official
from benchmarks.report import OFFICIAL, DisagreementError, Row

ALLOWED = 1e-4
"""Largest difference from the official side in float32, of logits relative to the largest logit, of each gradient
relative to its largest entry: the bound of tests/parity."""

NEGLIGIBLE = 1e-2
"""Gradients this much smaller than the largest of all are compared on that scale: that of k_proj's bias is rounding
and nothing else, since softmax ignores a shift of its scores."""


class Outputs(NamedTuple):
    """What one step computed, on the CPU."""

    logits: Tensor
    gradients: dict[str, Tensor]


class Measured(NamedTuple):
    """Seconds of a step, and peak bytes."""

    seconds: float
    memory: int


def compare_training(
    case: Case, sides: list[str], *, repeats: int, matmul_rate: float, torchscale: Path | None
) -> tuple[list[Row], list[str]]:
    """Check that the sides agree, then measure them.

    Args:
        case: what to run.
        sides: as ``decoders.build`` names them.
        repeats: timed steps per side.
        matmul_rate: FLOP/s that utilisation is relative to.
        torchscale: as for ``load_official``.

    Returns:
        The table's rows, and sentences about agreement.

    Raises:
        DisagreementError: logits or gradients differ; nothing was timed.
    """
    torch.compiler.reset()  # compile for this case's shapes, not for any
    notes = check_agreement(case.in_float32(), sides, case.title)
    weights = official_weights(case) if OFFICIAL in sides else None
    measured: Mapping[str, Measured | None]
    if case.device == "cuda":
        measured = {side: if_it_fits(_measure_alone, case, side, weights, repeats) for side in sides}
    else:
        measured = _measure_together(case, sides, weights, repeats, torchscale)
    return [_row(case, side, measured[side], matmul_rate) for side in sides], notes


def _row(case: Case, side: str, measured: Measured | None, matmul_rate: float) -> Row:
    if measured is None:
        return Row(case.title, side, problem="out of memory")
    flops = flops_per_step(case.size, case.batch, case.length)
    return Row(
        case.title,
        side,
        measured.seconds,
        measured.memory,
        items=case.batch * case.length,
        unit="tokens",
        utilisation=flops / measured.seconds / matmul_rate,
    )


def check_agreement(case: Case, sides: list[str], title: str) -> list[str]:
    """Compare logits and gradients of one step with the official side's.

    Returns:
        A sentence about each side that was compared.

    Raises:
        DisagreementError: they differ.
    """
    if OFFICIAL not in sides:
        return [f"{title}: not compared with the official side."]
    weights = official_weights(case)
    official = _outputs(case, OFFICIAL, weights)
    notes = []
    for side in sides:
        if side == OFFICIAL:
            continue
        outputs = _outputs(case, side, weights)
        logits = _difference(outputs.logits, official.logits)
        gradient, name = worst_gradient(outputs.gradients, official.gradients)
        found = (
            f"in float32, {case.batch} x {case.length}, logits differ by {logits:.1g}, gradients by up to "
            f"{gradient:.1g} ({name}), allowed {ALLOWED:.0e}"
        )
        if not (logits <= ALLOWED and gradient <= ALLOWED):
            raise DisagreementError(f"{title}: {side} and official disagree: {found}")
        notes.append(f"{title}: {side} and official agree: {found}.")
    return notes


def worst_gradient(gradients: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest relative difference of a parameter's gradient, and which parameter's."""
    floor = NEGLIGIBLE * max(gradient.abs().max().item() for gradient in expected.values())
    return max((_difference(gradients[name], expected[name], floor), name) for name in expected)


def _difference(actual: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    error, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
    return math.inf if math.isnan(error) else error / max(largest, floor)


def _outputs(case: Case, side: str, weights: dict[str, Tensor] | None) -> Outputs:
    model = build(side, case, weights)
    logits = training_step(model, case.tokens())
    return Outputs(logits.cpu(), {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None})


def _measure_alone(case: Case, side: str, weights: dict[str, Tensor] | None, repeats: int) -> Measured:
    """On a GPU one side at a time, so that each has all memory."""
    torch.compiler.reset()
    torch.cuda.reset_peak_memory_stats()
    step = partial(training_step, build(side, case, weights), case.tokens())
    seconds = time_in_turns({side: step}, warmups=3, repeats=repeats)[side]
    return Measured(seconds, torch.cuda.max_memory_allocated())


def _measure_together(
    case: Case, sides: list[str], weights: dict[str, Tensor] | None, repeats: int, torchscale: Path | None
) -> dict[str, Measured]:
    """On a CPU in turns, so that other load meets all sides; memory in a process for each."""
    tokens = case.tokens()
    steps = {side: partial(training_step, build(side, case, weights), tokens) for side in sides}
    seconds = time_in_turns(steps, warmups=1, repeats=repeats)
    return {side: Measured(seconds[side], in_fresh_process(step_memory, case, side, torchscale)) for side in sides}


def step_memory(case: Case, side: str, torchscale: Path | None) -> int:
    """Bytes by which building a side and two steps make this process grow."""
    if side == OFFICIAL:
        load_official(torchscale)
    tokens = case.tokens()
    before = resident_bytes()
    model = build(side, case, None)
    for _ in range(2):
        training_step(model, tokens)
    return peak_resident_bytes() - before
