"""A retention layer whose rows hold padding, packed documents or follow a state, compared with plain rows, in one run.

    python -m benchmarks.retention_inputs                   # on a GPU: width 2,048, 2,048 to 65,536 tokens, bfloat16
    python -m benchmarks.retention_inputs --device cpu --lengths 64 --width 64 --value-width 128 --heads 2

Forward and backward of the layer with its projections. A sixteenth of a row is padding, on the left. Documents have
lengths like those of web text (packed_documents.py), and the host knows where they lie, as in training. Outputs and the
gradient of the input are first compared with the definition in float32 at the shortest length.
"""

import argparse
import shlex
import sys
from dataclasses import replace
from functools import partial

import torch

from benchmarks.compare import positive
from benchmarks.measure import if_it_fits, time_in_turns
from benchmarks.packed_documents import drawn_starts
from benchmarks.report import DisagreementError, machine, versions
from benchmarks.retention_gpu import ALLOWED_BFLOAT16, EPS, mean_error, retention_inputs
from benchmarks.retention_steps import ALLOWED, Case, Step, step
from torchscale_fairseq.core.layers.retention import MultiScaleRetention, RetentionInputs, RetentionState
from torchscale_fairseq.core.ops.documents import Documents, note_documents

PLAIN, PADDED, PACKED, STATE = SIDES = ("plain rows", "padding", "documents", "a state")
PADDING = 16
"""Tokens of a row for each token of padding."""
HEADER = "| tokens | rows with | time | speed of plain rows |"


def inputs(case: Case, side: str, dtype: torch.dtype) -> RetentionInputs:
    """Tables and masks of a side."""
    if side == PADDED:
        mask = torch.arange(case.length, device=case.device)[None] < case.length // PADDING
        return retention_inputs(case, dtype, padding_mask=mask)
    if side == PACKED:
        starts = drawn_starts(1, case.length)
        known = note_documents(starts.to(case.device), Documents.of(starts).to(torch.device(case.device)))
        return retention_inputs(case, dtype, document_starts=known)
    return retention_inputs(case, dtype, seen=case.length if side == STATE else 0)


def layer_step(case: Case, side: str, dtype: torch.dtype, backend: str = "auto") -> Step:
    """A training step of a side."""
    torch.manual_seed(case.seed)
    layer = MultiScaleRetention(case.width, case.value_width, case.heads, norm_eps=EPS, backend=backend)
    layer.to(case.device, dtype)
    given = inputs(case, side, dtype)
    earlier = case.random(1, case.heads, case.width // case.heads, case.value_width // case.heads).detach()

    def forward(x: torch.Tensor) -> torch.Tensor:
        state = RetentionState() if side == STATE else None
        if state is not None:
            state.content = earlier
        output: torch.Tensor = layer(x, given, state)
        if given.padding_mask is None:
            return output
        return output.masked_fill(given.padding_mask.unsqueeze(-1), 0.0)  # backends differ where padding is

    x, weights = (case.random(1, case.length, case.width).detach().to(dtype) for _ in range(2))
    return partial(step, forward, weights, {"input": x.requires_grad_(), **dict(layer.named_parameters())})


def check_agreement(case: Case, side: str, dtype: torch.dtype) -> float:
    """The relative RMS difference from plain torch in float32.

    Raises:
        DisagreementError: it is too large.
    """
    exact = layer_step(case, side, torch.float32, backend="torch")()
    found = layer_step(case, side, dtype)()
    error = max(mean_error(found[name], exact[name]) for name in ("output", "input"))
    if not error <= (ALLOWED if dtype == torch.float32 else ALLOWED_BFLOAT16):
        raise DisagreementError(f"{side}: relative RMS difference {error} from float32")
    return error


def measure(case: Case, dtype: torch.dtype, repeats: int) -> list[str]:
    """Lines of the table."""
    steps = {side: layer_step(case, side, dtype) for side in SIDES}
    seconds = if_it_fits(partial(time_in_turns, steps, warmups=2, repeats=repeats))
    if seconds is None:
        return [f"| {case.length:,} | | out of memory | |"]
    return [
        f"| {case.length:,} | {side} | {taken * 1e3:.2f} ms | {seconds[PLAIN] / taken:.2f} |"
        for side, taken in seconds.items()
    ]


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
    print("\n".join([HEADER, "|---|---|---|---|", *rows]))
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
