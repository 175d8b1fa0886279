"""Time and memory of a training step of one program with official TorchScale 0.3.0 and with this package's names.

Prints a table for docs/drop_in.md. The two are measured in turns, each in a process of its own; memory is the largest
resident size of the process.
"""

import argparse
import importlib
import json
import resource
import subprocess
import sys
import time

import torch
from torch import nn

from benchmarks.official import load_official

SIZES = {"layers": 4, "width": 256, "heads": 4, "words": 1000, "batch": 2}
PROGRAMS = ("encoder", "decoder", "retnet", "retnet, chunkwise")


def build(program: str, width: int, layers: int, heads: int, words: int) -> nn.Module:
    """A model by TorchScale's names, whoever serves them."""
    from torchscale.architecture import config
    from torchscale.architecture.decoder import Decoder
    from torchscale.architecture.encoder import Encoder
    from torchscale.architecture.retnet import RetNetDecoder

    embedding = nn.Embedding(words, width)
    if program.startswith("retnet"):
        options = {"decoder_retention_heads": heads, "decoder_value_embed_dim": 2 * width}
        chunks = {"chunkwise_recurrent": "chunkwise" in program, "recurrent_chunk_size": 128}
        sizes = {"decoder_embed_dim": width, "decoder_ffn_embed_dim": 2 * width, "decoder_layers": layers}
        return RetNetDecoder(config.RetNetConfig(vocab_size=words, **options, **chunks, **sizes), embedding)
    names = {"embed_dim": width, "ffn_embed_dim": 4 * width, "layers": layers, "attention_heads": heads}
    sizes = {f"{program}_{name}": value for name, value in names.items()}
    kind, model = (config.EncoderConfig, Encoder) if program == "encoder" else (config.DecoderConfig, Decoder)
    return model(kind(vocab_size=words, **sizes), embedding)


def measure(program: str, length: int, steps: int) -> dict[str, float]:
    """Median seconds of a step, and MiB."""
    torch.manual_seed(0)
    sizes = dict(SIZES)
    tokens = torch.randint(0, sizes["words"], (sizes.pop("batch"), length))
    model, times = build(program, **sizes), []
    for _ in range(steps):
        start = time.perf_counter()
        output = model(tokens)
        (output["encoder_out"] if isinstance(output, dict) else output[0]).square().mean().backward()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": sorted(times)[len(times) // 2], "mib": peak}


def in_process(program: str, length: int, steps: int, *, ours: bool) -> dict[str, float]:
    words = [sys.executable, "-m", "benchmarks.drop_in", "--side", "ours" if ours else "official"]
    words += ["--one", program, "--length", str(length), "--steps", str(steps)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", choices=PROGRAMS, help="measure this program alone, and print JSON")
    parser.add_argument("--side", choices=("ours", "official"), default="ours", help="whose, with --one (ours)")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sequence (1024)")
    parser.add_argument("--steps", type=int, default=5, help="steps, of which the median counts (5)")
    options = parser.parse_args()
    if options.one:
        if options.side == "ours":
            importlib.import_module("torchscale_fairseq.as_torchscale")
        else:
            load_official(None)
        print(json.dumps(measure(options.one, options.length, options.steps)))
        return
    print("| program | official, s | here, s | official, MiB | here, MiB |\n|---|---|---|---|---|")
    for program in PROGRAMS:
        official, own = (in_process(program, options.length, options.steps, ours=ours) for ours in (False, True))
        times, sizes = (
            f"{official[key]:{form}} | {own[key]:{form}}" for key, form in (("seconds", ".2f"), ("mib", ".0f"))
        )
        print(f"| {program} | {times} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
