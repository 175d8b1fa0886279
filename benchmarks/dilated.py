"""Dilated attention compared with dense attention by torch's flash kernel, and its memory: measured in one run.

    python -m benchmarks.dilated                          # time over length on a CPU, in float32
    python -m benchmarks.dilated memory                   # 262,144 tokens: dilated attention alone, and a whole layer
    python -m benchmarks.dilated --device cuda --json docs/figures/dilated_attention.json   # 16k to 1M tokens, bfloat16

Segments of 2,048 to 32,768 tokens with ratios 1 to 16, causal, 8 heads of 64 channels (--heads, --not-causal). Output
and gradients are compared with the definition first; where they disagree nothing is timed and the exit status is 1.
TFLOP/s count the pairs of tokens that a side looks at: four operations per pair and channel forward, ten backward. From
the file of --json, dilated_figure.py draws cost over length and billion_tokens.py computes what a billion tokens take.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.compare import positive
from benchmarks.large_inputs import announce
from benchmarks.measure import if_it_fits, in_fresh_process, peak_resident_bytes, resident_bytes, time_in_turns
from benchmarks.report import DENSE, OURS, DisagreementError, Row, document, machine, versions
from torchscale_fairseq import DecoderConfig, LongNetDecoder, dilated_attention
from torchscale_fairseq.core.ops.dilated_pattern import naive_dilated_attention

RATIOS = (1, 2, 4, 8, 16)
SEGMENTS = tuple(2048 * ratio for ratio in RATIOS)
HEAD_DIM = 64
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Largest relative error, in the root mean square, of the output and of each gradient: as in tests/gpu."""
LAYER = "layer"
FORWARD, BOTH = "forward", "forward and backward"
OPERATIONS = {FORWARD: 4, BOTH: 14}
"""Per pair of tokens and channel."""
CHECKED = 1500
"""Tokens on which the definition, which needs the square of it in memory, is computed."""


@dataclass(frozen=True)
class Case:
    """A length, and what the options say of all lengths."""

    length: int
    device: str
    dtype: torch.dtype
    heads: int
    causal: bool
    chunk_size: int
    """Of the feed-forward network of a whole layer."""

    @classmethod
    def of(cls, length: int, options: argparse.Namespace) -> "Case":
        """A length with these options."""
        return cls(length, options.device, options.dtype, options.heads, not options.not_causal, options.ffn_chunk_size)

    @property
    def width(self) -> int:
        """Channels of all heads."""
        return self.heads * HEAD_DIM


@dataclass(frozen=True)
class Measured:
    """One row of the file of --json."""

    side: str
    length: int
    work: str
    seconds: float | None
    """None if the GPU's memory did not suffice."""
    memory: int | None = None
    """Bytes at the peak, inputs and their gradients included; on a CPU those of the whole process."""
    flops: float | None = None
    """Of the pairs that attention looks at; None for a layer."""


def inputs(case: Case) -> list[Tensor]:
    """Queries, keys and values, (1, length, heads, head_dim)."""
    generator = torch.Generator(case.device).manual_seed(1)
    shape = (1, case.length, case.heads, HEAD_DIM)
    draw = partial(torch.randn, shape, generator=generator, device=case.device, dtype=case.dtype)
    return [draw().requires_grad_() for _ in range(3)]


def dense(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        output = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return output.transpose(1, 2)


def dilated(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    return dilated_attention(query, key, value, SEGMENTS, RATIOS, causal=causal)


ATTENTION: dict[str, Callable[..., Tensor]] = {DENSE: dense, OURS: dilated}


def attention_step(side: str, work: str, tensors: list[Tensor], upstream: Tensor, *, causal: bool) -> list[Tensor]:
    """Output, and with ``BOTH`` the gradients."""
    if work == FORWARD:
        with torch.no_grad():
            return [ATTENTION[side](*tensors, causal=causal)]
    output = ATTENTION[side](*tensors, causal=causal)
    return [output.detach(), *torch.autograd.grad(output, tensors, upstream)]


def flops(side: str, work: str, case: Case) -> float | None:
    """Operations of the pairs that a side looks at."""
    if side == LAYER:
        return None
    branches = [(case.length, 1)] if side == DENSE else zip(SEGMENTS, RATIOS, strict=True)
    segments = [(min(size, case.length - i), r) for size, r in branches for i in range(0, case.length, size)]
    kept = [-(-size // ratio) for size, ratio in segments]
    pairs = sum(n * (n + 1) / 2 if case.causal else n * n for n in kept)
    return OPERATIONS[work] * pairs * case.width


def longnet_layer(case: Case) -> LongNetDecoder:
    """A decoder of one layer, recomputed and with its feed-forward network in chunks, without vocabulary."""
    config = DecoderConfig(
        decoder_embed_dim=case.width,
        decoder_attention_heads=case.heads,
        decoder_ffn_embed_dim=4 * case.width,
        decoder_layers=1,
        segment_length=SEGMENTS,
        dilated_ratio=RATIOS,
        xpos_rel_pos=True,
        xpos_scale_base=case.length,
        max_target_positions=case.length,
        checkpoint_activations=True,
        ffn_chunk_size=case.chunk_size,
    )
    return LongNetDecoder(config).train().to(case.device, case.dtype)


def layer_step(model: LongNetDecoder, x: Tensor, upstream: Tensor) -> None:
    """Forward and backward on embeddings, (1, seq, width); the gradients stay with x and the parameters."""
    model.zero_grad()
    x.grad = None
    tokens = torch.ones(x.shape[:2], dtype=torch.long, device=x.device)
    features, _ = model(tokens, token_embeddings=x)
    features.backward(upstream)


def steps(case: Case, work: str, sides: list[str]) -> dict[str, Callable[[], Any]]:
    """What is timed, by side."""
    tensors = inputs(case)
    upstream = torch.randn_like(tensors[0])
    found: dict[str, Callable[[], Any]] = {
        side: partial(attention_step, side, work, tensors, upstream, causal=case.causal)
        for side in sides
        if side != LAYER
    }
    if work == BOTH and LAYER in sides:
        x, weights = (y.detach().flatten(2) for y in (tensors[0], upstream))
        found[LAYER] = partial(layer_step, longnet_layer(case), x.requires_grad_(), weights)
    return found


def check(case: Case) -> str:
    """Compare with the definition in float64, on fewer tokens with shorter segments; a note about it.

    Raises:
        DisagreementError: they differ.
    """
    segments = [length // 32 for length in SEGMENTS]
    low = inputs(case)
    exact = [x.detach().double().requires_grad_() for x in low]
    found: list[Tensor] = []
    expected: list[Tensor] = []
    forms: list[tuple[Callable[..., Tensor], list[Tensor], list[Tensor]]]
    forms = [(dilated_attention, low, found), (naive_dilated_attention, exact, expected)]
    for form, tensors, into in forms:
        output = form(*tensors, segments, RATIOS, causal=case.causal)
        upstream = torch.ones_like(output, dtype=torch.float64).cumsum(1).sin().to(output.dtype)
        into += [output, *torch.autograd.grad(output, tensors, upstream)]
    errors = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]
    allowed = ALLOWED[case.dtype]
    text = f"output and gradients differ from the definition by up to {max(errors):.1g}, allowed {allowed:.0e}"
    if not max(errors) <= allowed:
        raise DisagreementError(f"dilated attention is wrong: {text}")
    return f"Over {case.length:,} tokens, {text}."


def measure_length(case: Case, options: argparse.Namespace) -> Iterator[Measured]:
    """All sides in turns, and their memory."""
    wanted = [side for side in options.sides if side != DENSE or case.length <= options.dense_up_to]
    for work in (FORWARD, BOTH):
        timed = steps(case, work, wanted)
        sides = list(timed)
        take = partial(time_in_turns, timed, warmups=options.warmups, repeats=options.repeats)
        seconds = if_it_fits(take) or {}
        del timed, take
        for side in sides:
            memory = peak(side, case) if work == BOTH and seconds else None
            yield Measured(side, case.length, work, seconds.get(side), memory, flops(side, work, case))


def peak(side: str, case: Case) -> int | None:
    """Bytes that forward and backward take at their peak, on the GPU or in a fresh process."""
    if case.device == "cpu":
        return sum(fresh(memory_of, side, case))
    measured = if_it_fits(memory_of, side, case)
    return None if measured is None else measured[1]


def fresh(function: Callable[..., tuple[int, int]], *arguments: Any) -> tuple[int, int]:
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what a process frees is then no longer resident
    return in_fresh_process(function, *arguments)


def memory_of(side: str, case: Case) -> tuple[int, int]:
    """Bytes in use before, and at the peak of forward and backward beyond that; inputs and gradients count."""
    on_gpu = case.device == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else resident_bytes()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    if side == LAYER:
        x = torch.randn(1, case.length, case.width, device=case.device, dtype=case.dtype, requires_grad=True)
        layer_step(longnet_layer(case), x, torch.ones_like(x))
    else:
        tensors = inputs(case)
        attention_step(side, BOTH, tensors, torch.ones_like(tensors[0]), causal=case.causal)
    return before, (torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes()) - before


def memory_bars(case: Case, sides: list[str]) -> Iterator[str]:
    """What a long sequence takes on a CPU."""
    recomputed = f"with checkpoint_activations and ffn_chunk_size={case.chunk_size}"
    names = {OURS: "dilated attention alone", LAYER: f"a layer of width {case.width} {recomputed}"}
    for side in [side for side in names if side in sides]:
        before, grown = fresh(memory_of, side, case)
        yield (
            f"{case.length:,} tokens, float32, forward and backward of {names[side]}: {(before + grown) / 1e9:.2f} GB "
            f"at its peak, of which {before / 1e9:.2f} GB before."
        )


def as_row(measured: Measured) -> Row:
    problem = "" if measured.seconds is not None else "out of memory"
    title = f"{measured.work}, 1 x {measured.length:,}"
    given = measured.seconds, measured.memory, measured.length, "tokens"
    return Row(title, measured.side, *given, problem=problem, flops=measured.flops)


def ratios(found: list[Measured]) -> Iterator[str]:
    """How much faster than dense attention, and how time grows with the length."""
    for work in (FORWARD, BOTH):
        seconds = {(m.side, m.length): m.seconds for m in found if m.work == work and m.seconds is not None}
        for side, length in seconds:
            if side == DENSE and (OURS, length) in seconds:
                times = seconds[DENSE, length] / seconds[OURS, length]
                yield f"{work}, {length:,} tokens: {times:.2f} times as fast as dense."
        for side in (OURS, LAYER):
            per_token = {length: 1e6 * s / length for (of, length), s in seconds.items() if of == side}
            if len(per_token) > 1:
                listed = ", ".join(f"{value:.3g} at {length:,}" for length, value in per_token.items())
                yield f"{work}, {side}, microseconds per token: {listed}."


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    options = parse_options(words)
    torch.set_num_threads(options.threads)
    found: list[Measured] = []
    notes: list[str] = []
    if options.benchmark != "memory":
        try:
            notes.append(check(Case.of(CHECKED, options)))
        except DisagreementError as error:
            print(f"dilated.py: {error}", file=sys.stderr)
            return 1
        for length in options.lengths:
            print(f"dilated.py: {length} tokens ...", file=sys.stderr)
            for measured in measure_length(Case.of(length, options), options):
                found.append(measured)
                announce("dilated", as_row(measured))
        notes += ratios(found)
    if options.benchmark != "time" and options.device == "cpu":
        print("dilated.py: memory ...", file=sys.stderr)
        notes += memory_bars(Case.of(options.memory_length, options), options.sides)
    text = document([as_row(m) for m in found], notes, words, options.device, module="dilated")
    print(text, end="")
    if options.output:
        options.output.write_text(text)
    if options.json:
        options.json.write_text(json.dumps(report(found, words, options), indent=1) + "\n")
    return 0


def report(found: list[Measured], words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": " ".join(["python -m benchmarks.dilated", *words]),
        "machine": machine(options.device),
        "versions": versions(),
        "dtype": str(options.dtype).removeprefix("torch."),
        "heads": options.heads,
        "causal": not options.not_causal,
        "head_dim": HEAD_DIM,
        "segment_lengths": SEGMENTS,
        "dilation_ratios": RATIOS,
        "rows": [asdict(m) for m in found],
    }


def parse_options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dilated.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("benchmark", nargs="?", choices=["time", "memory", "both"], default="time", help="default: time")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    add("--output", type=Path, metavar="FILE.md", help="also write what is printed")
    add("--json", type=Path, metavar="FILE.json", help="write the numbers, for the figure and the computation")
    add("--lengths", type=positive, nargs="+", metavar="N", help="tokens; default: 8k, 32k, 64k; cuda: 16k to 1M")
    add("--dense-up-to", type=positive, metavar="N", help="tokens; default: 32k; cuda: 512k")
    add("--heads", type=positive, default=8, metavar="N", help=f"of {HEAD_DIM} channels; default: 8")
    add("--not-causal", action="store_true", help="tokens see later ones too; there is no such layer")
    add("--sides", nargs="+", choices=[DENSE, OURS, LAYER], help="default: all")
    add("--repeats", type=positive, default=3, help="timed repetitions, of which the median counts; default: 3")
    add("--warmups", type=int, default=1, help="repetitions before them; default: 1")
    add("--threads", type=positive, default=os.cpu_count(), help="torch's threads; default: all cores")
    add("--memory-length", type=positive, default=262144, metavar="N", help="tokens of memory; default: 262144")
    add("--ffn-chunk-size", type=positive, default=8192, metavar="N", help="of the whole layer; default: 8192")
    options = parser.parse_args(words)
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch sees")
    options.sides = options.sides or [DENSE, OURS, LAYER][: 2 if options.not_causal else 3]
    if options.not_causal and LAYER in options.sides:
        parser.error(f"--not-causal: LongNet's {LAYER} is causal; leave it out, as in --sides {DENSE} {OURS}")
    options.dtype = torch.bfloat16 if on_gpu else torch.float32
    options.lengths = options.lengths or ([2**n for n in range(14, 21)] if on_gpu else [8192, 32768, 65536])
    options.dense_up_to = options.dense_up_to or (2**19 if on_gpu else 32768)
    return options


if __name__ == "__main__":
    sys.exit(main())
