"""SubLN's claim: one architecture for causal, masked and encoder-decoder models that stands higher learning rates.

Magneto, arXiv:2210.06423. Decoders that predict the next byte, encoders that fill in hidden bytes, and
encoder-decoders that repair the whole text are trained with post-LN, pre-LN and SubLN at learning rates from 0.0003
to 0.1. The figure shows the loss on held-out text at the end.

    python -m scripts.experiments.subln_learning_rates --device cuda --processes 14 --output docs/claims
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scripts.experiments.common import (
    BEGINNING,
    COLOURS,
    MASK,
    Experiment,
    Result,
    Text,
    Training,
    as_tensor,
    cross_entropy,
    held_out_loss,
    main,
    next_byte_loss,
    side_options,
    train,
)
from torchscale_fairseq import (
    Decoder,
    DecoderConfig,
    Encoder,
    EncoderConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESIDUALS = {"post-LN": ("orange", "s"), "pre-LN": ("sky", "^"), "SubLN": ("blue", "o")}
"""Colour and marker of each."""
HIDDEN = 0.2
"""Share of bytes that masked and encoder-decoder models do not see."""
HEADROOM = 0.5
"""Nats above the byte frequencies where the figure's axis ends."""


@dataclass(frozen=True)
class Run:
    kind: str
    residual: str
    layers: int
    """Of each side."""
    width: int
    heads: int
    training: Training


def runs(small: bool, seed: int) -> list[Run]:
    rates = (1e-2, 1e-1) if small else (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    planned = []
    for kind in KINDS:
        layers = (4 if small else 8) // (2 if kind == "encoder-decoder" else 1)
        for residual in RESIDUALS:
            for rate in rates:
                if small:
                    training = Training(rate, updates=300, warmup=30, batch=32, length=32, seed=seed)
                    planned.append(Run(kind, residual, layers, 64, 2, training))
                else:
                    training = Training(rate, updates=500, warmup=50, batch=64, length=64, seed=seed)
                    planned.append(Run(kind, residual, layers, 128, 4, training))
    return planned


def causal_loss(model: nn.Module, windows: Tensor, _: torch.Generator) -> Tensor:
    return next_byte_loss(model, windows)


def masked_loss(model: nn.Module, windows: Tensor, generator: torch.Generator) -> Tensor:
    """Of an encoder that fills in hidden bytes."""
    hidden = draw_hidden(windows, generator)
    logits = model(windows.masked_fill(hidden, MASK))["encoder_out"]
    return cross_entropy(logits, windows.masked_fill(~hidden, -100))


def repair_loss(model: nn.Module, windows: Tensor, generator: torch.Generator) -> Tensor:
    """Of an encoder-decoder that reads a text with hidden bytes and writes the text."""
    hidden = draw_hidden(windows, generator)
    before = nn.functional.pad(windows[:, :-1], (1, 0), value=BEGINNING)
    logits, _ = model(windows.masked_fill(hidden, MASK), before)
    return cross_entropy(logits, windows)


def draw_hidden(windows: Tensor, generator: torch.Generator) -> Tensor:
    """Bool, shaped like the windows."""
    return (torch.rand(windows.shape, generator=generator) < HIDDEN).to(windows.device)


@dataclass(frozen=True)
class Kind:
    """A family of models, and what it learns."""

    sides: tuple[str, ...]
    build: Callable[..., nn.Module]
    """From the options of its config."""
    loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor]
    xpos: bool = False
    """Rotary positions in place of absolute ones, with which a masked model needs many more updates to find the
    neighbours of a gap, and knows little but the frequencies of bytes until then. A decoder finds the byte before the
    next one in its own place."""


KINDS = {
    "encoder-decoder": Kind(
        ("encoder", "decoder"), lambda **options: EncoderDecoder(EncoderDecoderConfig(**options)), repair_loss
    ),
    "causal": Kind(("decoder",), lambda **options: Decoder(DecoderConfig(**options)), causal_loss),
    "masked": Kind(("encoder",), lambda **options: Encoder(EncoderConfig(**options)), masked_loss, xpos=True),
}


def measure(run: Run, text: Text, device: str) -> Result:
    torch.manual_seed(run.training.seed)
    kind = KINDS[run.kind]
    sizes = side_options(kind.sides, run.residual, layers=run.layers, width=run.width, heads=run.heads)
    model = kind.build(**sizes, no_scale_embedding=False, xpos_rel_pos=kind.xpos).to(device)

    def loss(windows: Tensor, generator: torch.Generator) -> Tensor:
        return kind.loss(model, windows, generator)

    return {
        "training_loss": train(model, loss, as_tensor(text.train, device), run.training),
        "held_out_loss": held_out_loss(model, loss, as_tensor(text.held_out, device), length=run.training.length),
    }


def draw(report: Result) -> "Figure":
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(KINDS), sharey=True, figsize=(12, 4.5))
    ceiling = report["text"]["unigram_entropy"] + HEADROOM
    for panel, name in zip(panels, ("causal", "masked", "encoder-decoder"), strict=True):
        for residual in RESIDUALS:
            chosen = [run for run in report["runs"] if (run["kind"], run["residual"]) == (name, residual)]
            draw_line(panel, chosen, residual, ceiling)
        panel.axhline(report["text"]["unigram_entropy"], color="grey", linestyle=":", label="byte frequencies")
        panel.set(title=name, xscale="log", xlabel="highest learning rate")
    panels[0].set_ylabel("held-out loss at the end (nats per byte)")
    panels[0].set_ylim(top=ceiling + 0.1)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def draw_line(panel: "Axes", runs: list[Result], residual: str, ceiling: float) -> None:
    """Final losses over learning rates; a cross at the ceiling for those above it or not finite."""
    colour, marker = RESIDUALS[residual]
    finals = {run["training"]["learning_rate"]: run["held_out_loss"] for run in runs}
    within = {rate: loss for rate, loss in sorted(finals.items()) if loss is not None and loss <= ceiling}
    diverged = [rate for rate in finals if rate not in within]
    panel.plot(list(within), list(within.values()), color=COLOURS[colour], marker=marker, label=residual)
    panel.plot(diverged, [ceiling] * len(diverged), "x", color=COLOURS[colour], markersize=10, markeredgewidth=2)


EXPERIMENT = Experiment("subln_learning_rates", __doc__, runs, measure, draw)

if __name__ == "__main__":
    main(EXPERIMENT)
