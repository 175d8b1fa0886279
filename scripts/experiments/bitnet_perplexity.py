"""BitNet's claim: models with weights of one bit, or of three values, come near those in full precision.

BitNet, arXiv:2310.11453 (b1), and "The Era of 1-bit LLMs", arXiv:2402.17764 (b1.58). Decoders learn to predict bytes at
several learning rates: in full precision, and with either kind of weights by each recipe. The figure shows perplexity
by learning rate, and training losses at each one's best.

    python -m scripts.experiments.bitnet_perplexity --device cuda --processes 15 --output docs/claims
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    held_out_loss,
    main,
    next_byte_loss,
    side_options,
    train,
)
from torchscale_fairseq import Decoder, DecoderConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHTS = {
    "full precision": "black",
    "b1.58": "blue",
    "b1.58, paper": "sky",
    "b1": "red",
    "b1, paper": "orange",
}
"""Kinds of weights, by the authors' notes unless it says paper, and the colour of each."""


@dataclass(frozen=True)
class Run:
    weights: str
    layers: int
    width: int
    heads: int
    training: Training


def runs(small: bool, seed: int) -> list[Run]:
    size, rates = ((2, 32, 2), (4e-3,)) if small else ((6, 256, 4), (1e-3, 2e-3, 4e-3))
    updates, batch = (150, 16) if small else (1200, 64)
    return [
        Run(weights, *size, Training(rate, updates=updates, warmup=50, batch=batch, length=129, seed=seed))
        for weights in reversed(WEIGHTS)
        for rate in rates
    ]


def measure(run: Run, text: Text, device: str) -> Result:
    torch.manual_seed(run.training.seed)
    scheme, _, recipe = run.weights.partition(", ")
    bits: dict[str, Any] = {} if scheme == "full precision" else {"bitnet": scheme, "bitnet_recipe": recipe or "faq"}
    config = DecoderConfig(
        **side_options(["decoder"], "pre-LN", layers=run.layers, width=run.width, heads=run.heads),
        **bits,
        gated_ffn=True,
        norm="rmsnorm",
        activation_fn="swish",
        xpos_rel_pos=True,
        no_scale_embedding=False,
    )
    model = Decoder(config).to(device)

    def loss(windows: Tensor, _: torch.Generator) -> Tensor:
        return next_byte_loss(model, windows)

    training_loss = train(model, loss, as_tensor(text.train, device), run.training)
    held_out = held_out_loss(model, loss, as_tensor(text.held_out, device), length=run.training.length)
    return {"training_loss": training_loss, "held_out_loss": held_out}


def perplexity(run: Result) -> float:
    return math.nan if run["held_out_loss"] is None else math.exp(run["held_out_loss"])


def draw(report: Result) -> "Figure":
    from matplotlib import pyplot

    figure, (by_rate, by_update) = pyplot.subplots(1, 2, figsize=(9, 4))
    for weights, colour in WEIGHTS.items():
        of_kind = sorted(
            (run for run in report["runs"] if run["weights"] == weights),
            key=lambda run: run["training"]["learning_rate"],
        )
        rates = [run["training"]["learning_rate"] for run in of_kind]
        by_rate.plot(rates, [perplexity(run) for run in of_kind], "o-", color=COLOURS[colour], label=weights)
        losses = min(of_kind, key=perplexity)["training_loss"]
        updates = [(point + 0.5) * UPDATES_PER_POINT for point in range(len(losses))]
        by_update.plot(updates, losses, color=COLOURS[colour], linewidth=1)
    by_rate.set_xscale("log")
    by_rate.set_xticks(rates, [f"{rate:g}" for rate in rates], minor=False)
    by_rate.minorticks_off()
    by_rate.set_xlabel("learning rate")
    by_rate.set_ylabel("held-out perplexity per byte")
    by_update.set_xlabel("update, at the best learning rate")
    by_update.set_ylabel("training loss (nats per byte)")
    by_update.set_ylim(top=2.5)
    figure.legend(*by_rate.get_legend_handles_labels(), loc="outside upper center", ncols=len(WEIGHTS))
    return figure


EXPERIMENT = Experiment("bitnet_perplexity", __doc__, runs, measure, draw)

if __name__ == "__main__":
    main(EXPERIMENT)
