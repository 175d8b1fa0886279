"""Packed rows compared with rows whose tokens all see each other, forward and backward: agreement first, then time.

    python -m benchmarks.packed_documents                   # on a GPU: 768 wide, 12 layers, bfloat16
    python -m benchmarks.packed_documents --device cpu --layers 2 --batch 2 --length 256 --dtype float32

Documents have lengths like those of web text: log-normal, 300 tokens in the median. Where documents lie is known to the
host, as in training. Each row goes to stderr when it is measured, and the table to stdout at the end.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import time_in_turns
from benchmarks.report import DisagreementError, machine, versions
from torchscale_fairseq import Decoder, DecoderConfig, Encoder, EncoderConfig, RetNetConfig, RetNetDecoder
from torchscale_fairseq.core.ops.documents import Documents, note_documents

ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest relative RMS difference from documents alone, which are computed by other kernels."""
MEDIAN, SPREAD = 300, 1.0
VOCABULARY = 32000


def build(kind: str, options: argparse.Namespace, *, compiled: bool) -> nn.Module:
    """A model of one kind."""
    torch.manual_seed(0)
    sizes = {"embed_dim": options.width, "ffn_embed_dim": 4 * options.width, "layers": options.layers}
    heads = options.width // 64
    common: dict[str, Any] = {"vocab_size": VOCABULARY, "no_output_layer": True, "compile": compiled}
    if kind == "retnet":
        retention = {
            "decoder_value_embed_dim": 2 * options.width,
            "decoder_retention_heads": max(1, options.width // 256),
        }
        own = {f"decoder_{name}": size for name, size in sizes.items()}
        return RetNetDecoder(RetNetConfig(**common, **own, **retention))
    side = "encoder" if kind == "bert" else "decoder"
    own = {f"{side}_{name}": size for name, size in sizes.items()} | {f"{side}_attention_heads": heads}
    own |= {"rel_pos_buckets": 32, "max_rel_pos": 128} if kind == "t5 bias" else {}
    own |= {"xpos_rel_pos": True} if kind == "xpos" else {}
    if kind == "bert":
        return Encoder(EncoderConfig(**common, **own, max_source_positions=options.length))
    return Decoder(DecoderConfig(**common, **own, max_target_positions=options.length))


def drawn_starts(batch: int, length: int) -> Tensor:
    """(batch, length), True for the first tokens of documents that follow each other through all rows."""
    generator = torch.Generator().manual_seed(0)
    sizes = (torch.randn(batch * length, generator=generator) * SPREAD).exp().mul(MEDIAN).long().clamp(min=1)
    first = sizes.cumsum(0) - sizes
    starts = torch.zeros(batch * length, dtype=torch.bool)
    starts[first[first < len(starts)]] = True
    starts = starts.view(batch, length)
    starts[:, 0] = True
    return starts


def features(model: nn.Module, tokens: Tensor, **arguments: Any) -> Tensor:
    """Of the last layer, (batch, seq, width)."""
    output = model(tokens, **arguments)
    return output["encoder_out"] if isinstance(output, dict) else output[0]


def check_agreement(model: nn.Module, tokens: Tensor, starts: Tensor, dtype: torch.dtype) -> float:
    """The relative RMS difference from the first row's documents alone.

    Raises:
        DisagreementError: it is too large.
    """
    with torch.no_grad():
        found = features(model, tokens[:1], document_starts=starts[:1].to(tokens.device))
        alone = [features(model, part) for part in tokens[:1].tensor_split(starts[0].nonzero().flatten()[1:], 1)]
    wanted = torch.cat(alone, 1).float()
    error = float((found.float() - wanted).norm() / wanted.norm())
    if error > ALLOWED[dtype]:
        raise DisagreementError(f"relative RMS difference {error}")
    return error


def steps(model: nn.Module, tokens: Tensor, starts: Tensor, count: int) -> dict[str, Callable[[], None]]:
    """Some forward and backward passes of rows as they are, and packed."""
    known = note_documents(starts.to(tokens.device), Documents.of(starts).to(tokens.device))

    def run(**arguments: Any) -> None:
        for _ in range(count):
            model.zero_grad()
            features(model, tokens, **arguments).float().square().mean().backward()

    return {"rows": run, "packed": lambda: run(document_starts=known)}


def measure(kind: str, options: argparse.Namespace, *, compiled: bool) -> str:
    """A row of the table."""
    dtype = getattr(torch, options.dtype)
    model, plain = (build(kind, options, compiled=c).to(options.device, dtype) for c in (compiled, False))
    starts = drawn_starts(options.batch, options.length)
    tokens = torch.randint(4, VOCABULARY, starts.shape, device=options.device)
    with torch.no_grad():
        features(plain.eval(), tokens)  # kernels are tuned for the size that is measured
    error = check_agreement(plain, tokens, starts, dtype)
    sides = steps(model, tokens, starts, options.steps)
    seconds = time_in_turns(sides, warmups=options.warmups, repeats=options.repeats)
    rows, packed = (seconds[name] / options.steps for name in ("rows", "packed"))
    documents = int(starts.sum())
    return (
        f"| {kind}{', compiled' if compiled else ''} | {documents} | {error:.1e} | {rows * 1e3:.1f} ms | "
        f"{packed * 1e3:.1f} ms | {rows / packed:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--kinds", nargs="*", default=["gpt", "xpos", "bert", "t5 bias", "retnet"])
    for name, default in (("width", 768), ("layers", 12), ("batch", 16), ("length", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("steps", 5), ("warmups", 3), ("repeats", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compile", action="store_true", help="measure compiled layers too")
    options = parser.parse_args()
    rows = []
    for kind in options.kinds:
        for compiled in [False, True] if options.compile else [False]:
            rows.append(measure(kind, options, compiled=compiled))
            print(rows[-1], file=sys.stderr, flush=True)
    print(machine(options.device), versions(), sep="\n")
    print("| model | documents | difference | rows | packed | speed of packed rows |")
    print("\n".join(["|---|---|---|---|---|---|", *rows]))


if __name__ == "__main__":
    main()
