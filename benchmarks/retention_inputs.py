"""A retention layer whose rows hold padding, packed documents or follow a state, compared with plain rows, in one run.

    python -m benchmarks.retention_inputs                   # on a GPU: width 2,048, 2,048 to 65,536 tokens, bfloat16
    python -m benchmarks.retention_inputs --device cpu --lengths 64 --width 64 --value-width 128 --heads 2

Forward and backward of the layer with its projections. A sixteenth of a row is padding, on the left. Documents have
lengths like those of web text (packed_documents.py). The host knows where both lie, as in training. What a model makes
once per forward pass for all layers, rotations and where sequences lie, is made before the steps; the last column says
how long it takes. Outputs of real tokens and the gradient of the input are first compared with the definition in
float32 at the shortest length.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.compare import positive
from benchmarks.measure import if_it_fits, time_in_turns
from benchmarks.packed_documents import drawn_starts
from benchmarks.report import DisagreementError, machine, versions
from benchmarks.retention_gpu import ALLOWED_BFLOAT16, EPS, mean_error, retention_inputs
from benchmarks.retention_steps import ALLOWED, Case, Step, step
from torchscale_fairseq.core.layers.retention import MultiScaleRetention, RetentionState
from torchscale_fairseq.core.layers.retention_inputs import RetentionInputs
from torchscale_fairseq.core.ops.documents import Documents, note_documents
from torchscale_fairseq.core.ops.masks import know_padding
from torchscale_fairseq.core.ops.positions import padding_of

PLAIN, PADDED, PACKED, STATE = SIDES = ("plain rows", "padding", "documents", "a state")
PADDING = 16
"""Tokens of a row for each token of padding."""
HEADER = "| tokens | rows with | time | speed of plain rows | once for all layers |"


def masks(case: Case, side: str) -> dict[str, Any]:
    """Masks of a side, as for ``RetentionInputs.of``, about which the host knows what a model asks."""
    if side == PADDED:
        mask = torch.arange(case.length)[None] < case.length // PADDING
        return {"padding_mask": know_padding(mask.to(case.device), padding_of(mask))}
    if side == PACKED:
        starts = drawn_starts(1, case.length)
        documents = Documents.of(starts).to(torch.device(case.device))
        return {"document_starts": note_documents(starts.to(case.device), documents)}
    return {}


def maker(case: Case, side: str, dtype: torch.dtype) -> Callable[[], RetentionInputs]:
    """Makes the inputs of a side's layers."""
    return partial(retention_inputs, case, dtype, seen=case.length if side == STATE else 0, **masks(case, side))


def layer_step(case: Case, side: str, dtype: torch.dtype, backend: str = "auto") -> Step:
    """A training step of a side."""
    torch.manual_seed(case.seed)
    layer = MultiScaleRetention(case.width, case.value_width, case.heads, norm_eps=EPS, backend=backend)
    layer.to(case.device, dtype)
    given = maker(case, side, dtype)()
    earlier = case.random(1, case.heads, case.width // case.heads, case.value_width // case.heads).detach()

    def forward(x: Tensor) -> Tensor:
        state = RetentionState() if side == STATE else None
        if state is not None:
            state.content = earlier
        output: Tensor = layer(x, given, state)
        return output

    x, weights = (case.random(1, case.length, case.width).detach().to(dtype) for _ in range(2))
    leaves = {"input": x.requires_grad_(), **dict(layer.named_parameters())}
    return partial(step, forward, without_padding(weights, case, side), leaves)


def without_padding(x: Tensor, case: Case, side: str) -> Tensor:
    """Zeros for padding, whose output, which nobody uses, differs between backends."""
    mask = masks(case, side).get("padding_mask")
    return x if mask is None else x.masked_fill(mask.unsqueeze(-1), 0.0)


def check_agreement(case: Case, side: str, dtype: torch.dtype) -> float:
    """The relative RMS difference from plain torch in float32.

    Raises:
        DisagreementError: it is too large.
    """
    exact = layer_step(case, side, torch.float32, backend="torch")()
    found = layer_step(case, side, dtype)()
    pairs = [[without_padding(x[name], case, side) for x in (found, exact)] for name in ("output", "input")]
    error = max(mean_error(*pair) for pair in pairs)
    if not error <= (ALLOWED if dtype == torch.float32 else ALLOWED_BFLOAT16):
        raise DisagreementError(f"{side}: relative RMS difference {error} from float32")
    return error


def measure(case: Case, dtype: torch.dtype, repeats: int) -> list[str]:
    """Lines of the table."""
    steps = {side: layer_step(case, side, dtype) for side in SIDES}
    seconds = if_it_fits(partial(time_in_turns, steps, warmups=2, repeats=repeats))
    if seconds is None:
        return [f"| {case.length:,} | | out of memory | | |"]
    once = time_in_turns({side: maker(case, side, dtype) for side in SIDES}, warmups=2, repeats=repeats)
    rows = []
    for side, taken in seconds.items():
        times = f"{taken * 1e3:.2f} ms | {seconds[PLAIN] / taken:.2f} | {once[side] * 1e3:.2f} ms"
        rows.append(f"| {case.length:,} | {side} | {times} |")
    return rows


def main(words: list[str]) -> None:
    options = parse_options(words)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    case = Case(min(options.lengths), options.width, options.value_width, options.heads, device=options.device)
    errors = {side: check_agreement(case, side, dtype) for side in SIDES}
    rows = []
    for length in options.lengths:
        rows += measure(replace(case, length=length), dtype, options.repeats)
        print("\n".join(rows[-len(SIDES) :]), file=sys.stderr, flush=True)
    print(f"`{shlex.join(['python', '-m', 'benchmarks.retention_inputs', *words])}`\n")
    print(f"{machine(options.device)}; {versions()}\n")
    print("\n".join([HEADER, "|---|---|---|---|---|", *rows]))
    listed = ", ".join(f"{error:.1g} ({side})" for side, error in errors.items())
    print(f"\nRelative RMS difference from float32 over {case.length:,} tokens: {listed}.")


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="retention_inputs.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda", help="(cuda)")
    add("--lengths", type=positive, nargs="+", default=[2048, 8192, 65536], help="tokens (2,048 8,192 65,536)")
    for name, default in (("width", 2048), ("value-width", 3456), ("heads", 8), ("repeats", 10)):
        add(f"--{name}", type=positive, default=default, help=f"({default:,})")
    return parser.parse_args(words)


if __name__ == "__main__":
    main(sys.argv[1:])
