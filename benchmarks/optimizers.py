"""An update by --optimizer fused_adam_torch and by fairseq's adam (without apex), measured in one run.

    python -m benchmarks.optimizers                  # the 125M decoder's layers and 20,000 entries of vocabulary: 100M
    python -m benchmarks.optimizers --layers 2

All sides start from the same parameters and get the same gradients. What they make of the parameters is compared
first; where it differs nothing is timed and the exit status is 1.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.compare import positive
from benchmarks.measure import time_in_turns
from benchmarks.report import DisagreementError, Row, document
from torchscale_fairseq import Decoder, DecoderConfig, plugin
from torchscale_fairseq.core.layers.embedding import TextEmbedding
from torchscale_fairseq.core.ops.positions import PADDING_POSITION

ADAM, FUSED, FOREACH = "fairseq adam", "fused", "foreach"
ALLOWED = 1e-6
"""Largest difference of parameters after three updates, which are of size 1e-3 or less each."""
OPTIONS = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1}


def parameters(layers: int, device: str) -> list[Tensor]:
    """Those of a decoder with the width of the 125M one, with gradients."""
    torch.manual_seed(1)
    config = DecoderConfig(decoder_layers=layers, vocab_size=20_000, share_decoder_input_output_embed=True)
    model = Decoder(config, TextEmbedding(config.vocab_size, config.decoder_embed_dim, PADDING_POSITION)).to(device)
    learnt: list[Tensor] = list(model.parameters())
    for p in learnt:
        p.grad = torch.randn_like(p) / 100
    return learnt


def optimizers(learnt: list[Tensor]) -> dict[str, torch.optim.Optimizer]:
    """One per side, with parameters of its own; gradients are shared."""
    plugin.register()
    from fairseq.optim.adam import Adam

    from torchscale_fairseq.optim.fused_adam_torch import FusedAdam

    makers = {ADAM: Adam, FUSED: partial(FusedAdam, kernel="fused"), FOREACH: partial(FusedAdam, kernel="foreach")}
    return {side: make(_copies(learnt), **OPTIONS) for side, make in makers.items()}


def _copies(learnt: list[Tensor]) -> list[nn.Parameter]:
    copies = [nn.Parameter(p.detach().clone()) for p in learnt]
    for copy, p in zip(copies, learnt, strict=True):
        copy.grad = p.grad
    return copies


def compare(sides: dict[str, torch.optim.Optimizer]) -> dict[str, float]:
    """Largest differences from fairseq's, after three updates.

    Raises:
        DisagreementError: they are above ALLOWED.
    """
    for optimizer in sides.values():
        for _ in range(3):
            optimizer.step()
    expected, *others = ([p for g in o.param_groups for p in g["params"]] for o in sides.values())
    found = {
        side: max((a - b).abs().max().item() for a, b in zip(expected, other, strict=True))
        for side, other in zip((FUSED, FOREACH), others, strict=True)
    }
    for side, difference in found.items():
        if not difference <= ALLOWED:
            raise DisagreementError(f"{side} and {ADAM} disagree: parameters differ by {difference:.1e}")
    return found


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=positive, default=12, help="of the decoder (12)")
    parser.add_argument("--repeats", type=positive, default=5, help="updates of each side (5)")
    parser.add_argument("--threads", type=positive, help="of torch (all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="also write the table to a file")
    options = parser.parse_args(words)
    if options.threads:
        torch.set_num_threads(options.threads)

    learnt = parameters(options.layers, options.device)
    count = sum(p.numel() for p in learnt)
    sides = optimizers(learnt)
    try:
        differences = compare(sides)
    except DisagreementError as error:
        print(f"optimizers.py: {error}", file=sys.stderr)
        return 1
    seconds = time_in_turns({side: o.step for side, o in sides.items()}, warmups=1, repeats=options.repeats)
    name = f"update of {count / 1e6:.1f}M parameters, float32"
    rows = [Row(name, side, seconds[side], items=count, unit="parameters") for side in sides]
    notes = [
        f"{side}: {seconds[ADAM] / seconds[side]:.2f} times as fast; parameters differ by {difference:.0e}"
        for side, difference in differences.items()
    ]
    text = document(rows, notes, words, options.device, "optimizers")
    print(text, end="")
    if options.output:
        options.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
