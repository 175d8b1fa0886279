"""xPos's claim: decoders that read texts longer than those they were trained on.

A Length-Extrapolatable Transformer, arXiv:2212.10554. Decoders trained on windows of 128 bytes read windows of up to
2,048: with learned and sinusoidal positions, T5's relative bias, rotary positions (xPos that decays over 10^9 bytes,
that is, not at all) and xPos, the last two also with blockwise causal attention. All windows end at the same places,
so that the perplexity of their last 128 bytes is that of the same bytes with more and more before them.

    python -m scripts.experiments.xpos_extrapolation --device cuda --processes 6 --output docs/claims
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scripts.experiments.common import (
    COLOURS,
    Experiment,
    Result,
    Text,
    Training,
    as_tensor,
    finite,
    main,
    next_byte_loss,
    side_options,
    train,
    windows_at,
)
from torchscale_fairseq import Decoder, DecoderConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BYTES_AT_ONCE = 32768
LONGEST = 16
"""Longest windows, in windows of training."""
POSITIONS: dict[str, dict[str, Any]] = {
    "T5 bias": {"rel_pos_buckets": 32, "max_rel_pos": 128},
    "xPos": {"xpos_rel_pos": True},
    "rotary": {"xpos_rel_pos": True, "xpos_scale_base": 10**9},
    "sinusoidal": {},
    "learned": {"decoder_learned_pos": True},
}
LOOKS = {
    "learned": ("purple", "s"),
    "sinusoidal": ("orange", "^"),
    "T5 bias": ("green", "D"),
    "rotary": ("sky", "v"),
    "xPos": ("blue", "o"),
}
"""Colour and marker of each."""


@dataclass(frozen=True)
class Run:
    positions: str
    layers: int
    width: int
    heads: int
    windows: int
    """Windows of each length to read."""
    training: Training

    @property
    def trained(self) -> int:
        """Bytes that the model sees in training."""
        return self.training.length - 1


def runs(small: bool, seed: int) -> list[Run]:
    if small:
        training = Training(learning_rate=3e-3, updates=200, warmup=20, batch=16, length=33, seed=seed)
        return [Run(positions, 2, 64, 2, 64, training) for positions in POSITIONS]
    training = Training(learning_rate=1e-3, updates=2500, warmup=100, batch=64, length=129, seed=seed)
    return [Run(positions, 6, 256, 4, 1024, training) for positions in POSITIONS]


def measure(run: Run, text: Text, device: str) -> Result:
    torch.manual_seed(run.training.seed)
    sizes = side_options(["decoder"], "SubLN", layers=run.layers, width=run.width, heads=run.heads)
    config = DecoderConfig(**sizes, **POSITIONS[run.positions], max_target_positions=LONGEST * run.trained)
    model = Decoder(config).to(device)

    def loss(windows: Tensor, _: torch.Generator) -> Tensor:
        return next_byte_loss(model, windows)

    training_loss = train(model, loss, as_tensor(text.train, device), run.training)
    models = {"full": model}
    if config.xpos_rel_pos:
        models["blockwise"] = with_blockwise_attention(model, run.trained)
    held_out = as_tensor(text.held_out, device)
    return {
        "training_loss": training_loss,
        "perplexities": [
            {"attention": attention, **row}
            for attention, trained in models.items()
            for row in perplexities(trained, held_out, run)
        ],
    }


def with_blockwise_attention(model: Decoder, window: int) -> Decoder:
    """The same weights in a decoder whose tokens see, in evaluation, their half-window and the one before."""
    blockwise = Decoder(replace(model.config, blockwise_causal_window=window))
    blockwise.load_state_dict(model.state_dict())
    return blockwise.to(next(model.parameters()).device)


@torch.no_grad()
def perplexities(model: Decoder, text: Tensor, run: Run) -> list[Result]:
    """Perplexity by length of window: of all its bytes, and of its last ones, which are the same for all lengths."""
    model.eval()
    ends = torch.linspace(LONGEST * run.trained + 1, len(text), run.windows).long()
    rows = []
    for length in (run.trained * 2**doubling for doubling in range(LONGEST.bit_length())):
        batches = ends.split(max(1, BYTES_AT_ONCE // length))
        losses = torch.cat([byte_losses(model, windows_at(text, batch - length - 1, length + 1)) for batch in batches])
        rows.append(
            {
                "length": length,
                "all": finite(math.exp(losses.mean())),
                "last": finite(math.exp(losses[:, -run.trained :].mean())),
            }
        )
    return rows


def byte_losses(model: Decoder, windows: Tensor) -> Tensor:
    """Loss in nats of each byte of the windows but the first, (windows, length - 1)."""
    logits, _ = model(windows[:, :-1])
    return nn.functional.cross_entropy(logits.transpose(1, 2), windows[:, 1:], reduction="none")


def draw(report: Result) -> "Figure":
    from matplotlib import pyplot

    trained = report["runs"][0]["training"]["length"] - 1
    figure, panels = pyplot.subplots(1, 2, sharey=True, figsize=(11, 5))
    titles = {"all": "all bytes of a window", "last": f"the last {trained} bytes of each window (the same bytes)"}
    for panel, (which, title) in zip(panels, titles.items(), strict=True):
        for name, (colour, marker) in LOOKS.items():
            run = next(run for run in report["runs"] if run["positions"] == name)
            for attention, line in (("full", "-"), ("blockwise", "--")):
                rows = [row for row in run["perplexities"] if row["attention"] == attention]
                if rows:
                    label = name if attention == "full" else f"{name}, blockwise"
                    look = {"color": COLOURS[colour], "marker": marker, "linestyle": line, "label": label}
                    panel.plot([row["length"] for row in rows], [row[which] for row in rows], **look)
        lengths = sorted({row["length"] for run in report["runs"] for row in run["perplexities"]})
        panel.set(title=title, yscale="log", xlabel=f"window (bytes); trained on {trained}")
        panel.set_xscale("log", base=2)
        panel.set_xticks(lengths, [f"{length:,}" for length in lengths])
    panels[0].set_ylabel("perplexity per byte")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure


EXPERIMENT = Experiment("xpos_extrapolation", __doc__, runs, measure, draw)

if __name__ == "__main__":
    main(EXPERIMENT)
