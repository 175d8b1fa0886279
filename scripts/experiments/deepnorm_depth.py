"""DeepNorm's claim: post-norm that trains at depths where plain post-LN does not, as well as pre-LN or better.

DeepNet, arXiv:2203.00555. Decoders of 18 to 200 layers learn to predict bytes, all at one learning rate: post-LN,
pre-LN and DeepNorm. The figure shows their training losses, and the gradient norm of each layer before the first
update and after the last.

    python -m scripts.experiments.deepnorm_depth --device cuda --processes 12 --output docs/claims
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scripts.experiments.common import (
    COLOURS,
    UPDATES_PER_POINT,
    Experiment,
    Result,
    Text,
    Training,
    as_tensor,
    draw_windows,
    finite,
    held_out_loss,
    main,
    next_byte_loss,
    side_options,
    train,
)
from torchscale_fairseq import Decoder, DecoderConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESIDUALS = {"post-LN": "orange", "pre-LN": "sky", "DeepNorm": "blue"}
"""The colour of each."""


@dataclass(frozen=True)
class Run:
    residual: str
    layers: int
    width: int
    heads: int
    training: Training


def runs(small: bool, seed: int) -> list[Run]:
    if small:
        depths: tuple[int, ...] = (24, 6)
        training = Training(learning_rate=1e-3, updates=120, warmup=10, batch=16, length=33, seed=seed)
    else:
        depths = (200, 100, 50, 18)
        training = Training(learning_rate=1e-3, updates=400, warmup=50, batch=64, length=65, seed=seed)
    return [Run(residual, layers, 64, 2, training) for layers in depths for residual in RESIDUALS]


def measure(run: Run, text: Text, device: str) -> Result:
    torch.manual_seed(run.training.seed)
    sizes = side_options(["decoder"], run.residual, layers=run.layers, width=run.width, heads=run.heads)
    model = Decoder(DecoderConfig(**sizes, no_scale_embedding=False)).to(device)

    def loss(windows: Tensor, _: torch.Generator) -> Tensor:
        return next_byte_loss(model, windows)

    length = run.training.length
    probe = draw_windows(as_tensor(text.held_out, device), run.training.batch, length, torch.Generator().manual_seed(0))
    before = gradient_norms(model, probe)
    training_loss = train(model, loss, as_tensor(text.train, device), run.training)
    return {
        "training_loss": training_loss,
        "gradient_norms_before": before,
        "gradient_norms_after": gradient_norms(model, probe),
        "held_out_loss": held_out_loss(model, loss, as_tensor(text.held_out, device), length=length),
    }


def gradient_norms(model: Decoder, windows: Tensor) -> list[float | None]:
    """L2 norm of the gradient of each layer's parameters, the layer nearest to the input first."""
    model.zero_grad()
    next_byte_loss(model, windows).backward()
    gradients = [[p.grad for p in layer.parameters() if p.grad is not None] for layer in model.layers]
    norms = [torch.nn.utils.get_total_norm(of_layer) for of_layer in gradients]
    model.zero_grad()
    return [finite(float(norm)) for norm in norms]


def draw(report: Result) -> "Figure":
    from matplotlib import pyplot

    depths = sorted({run["layers"] for run in report["runs"]})
    figure, rows = pyplot.subplots(
        2, len(depths), sharex="row", sharey="row", squeeze=False, figsize=(3 * len(depths), 6)
    )
    for depth, losses, norms in zip(depths, *rows, strict=True):
        losses.set_title(f"{depth} layers")
        for run in report["runs"]:
            if run["layers"] == depth:
                draw_run(run, losses, norms)
        losses.axhline(report["text"]["unigram_entropy"], color="grey", linestyle=":", label="byte frequencies")
        losses.set_xlabel("update")
        norms.set_xlabel("place of the layer (0: input, 1: output)")
        norms.set_yscale("log")
    rows[0][0].set_ylabel("training loss (nats per byte)")
    rows[1][0].set_ylabel("gradient norm of a layer\n(solid: before training, dashed: after)")
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def draw_run(run: Result, losses: "Axes", norms: "Axes") -> None:
    colour = COLOURS[RESIDUALS[run["residual"]]]
    updates = [(point + 0.5) * UPDATES_PER_POINT for point in range(len(run["training_loss"]))]
    losses.plot(updates, run["training_loss"], color=colour, label=run["residual"])
    share = [(layer + 0.5) / run["layers"] for layer in range(run["layers"])]
    norms.plot(share, run["gradient_norms_before"], color=colour)
    norms.plot(share, run["gradient_norms_after"], color=colour, linestyle="--", linewidth=1)


EXPERIMENT = Experiment("deepnorm_depth", __doc__, runs, measure, draw)

if __name__ == "__main__":
    main(EXPERIMENT)
