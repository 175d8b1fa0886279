"""Multi-query associative recall: the items of a list that a state of constant size keeps, compared with attention.

Zoology, arXiv:2312.04927. An example lists four pairs of a key and a value; then, among random tokens, each key comes
once more, and the model is to predict the value that it had. The gaps follow a power law. Two layers of RetNet and of
gpt (DeepNorm) read 10,000 examples of 64 tokens over and over, at three learning rates. The figure shows the share of
values that they predict on examples they have not seen; thick lines are the better rates.

    python -m scripts.experiments.associative_recall --processes 2 --output docs/claims
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scripts.experiments.common import (
    COLOURS,
    VOCABULARY,
    Experiment,
    Result,
    Text,
    Training,
    cross_entropy,
    finite,
    main,
    side_options,
    updates,
)
from torchscale_fairseq import Decoder, DecoderConfig, RetNetConfig, RetNetDecoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = ("RetNet", "gpt")
LOOKS = {"RetNet": ("blue", "o"), "gpt": ("orange", "s")}
"""Colour and marker of each."""
PAIRS = 4
KEYS, VALUES = (2, VOCABULARY // 2), (VOCABULARY // 2, VOCABULARY)
"""First token of each kind, and the one after the last; 0 and 1 have special roles."""
GAP_EXPONENT = 0.01 - 1
"""Of the power law by which queries follow the list."""
EXAMPLES, HELD_OUT = 10000, 1000
"""To train on, again and again, and to measure on."""
UPDATES_PER_LOOK = 100
"""Updates between measurements of the model's recall."""
ENOUGH = 0.999
"""Share of right values at which training stops."""


@dataclass(frozen=True)
class Run:
    model: str
    layers: int
    width: int
    heads: int
    training: Training


def runs(small: bool, seed: int) -> list[Run]:
    updates, rates = (1200, (3e-3,)) if small else (2500, (1e-3, 3e-3, 1e-2))
    return [
        Run(model, 2, 64, 2, Training(rate, updates, warmup=updates // 20, batch=32, length=64, seed=seed))
        for rate in rates
        for model in MODELS
    ]


def measure(run: Run, _: Text, device: str) -> Result:
    torch.manual_seed(run.training.seed)
    model = build(run).to(device)
    train, held_out = (
        draw_examples(count, run.training.length, torch.Generator().manual_seed(seed))
        for count, seed in ((EXAMPLES, run.training.seed), (HELD_OUT, run.training.seed + 1000))
    )

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(EXAMPLES, (run.training.batch,), generator=generator)
        tokens, targets = (x[rows].to(device) for x in train)
        return cross_entropy(model(tokens)[0], targets)

    points = []
    for update, value in enumerate(updates(model, loss, run.training), 1):
        if update % UPDATES_PER_LOOK == 0:
            share = recall(model, *held_out, device)
            points.append({"update": update, "loss": finite(float(value)), "recall": finite(share)})
            if share >= ENOUGH:
                break
    return {"parameters": sum(p.numel() for p in model.parameters()), "points": points, "recall": points[-1]["recall"]}


def build(run: Run) -> Decoder | RetNetDecoder:
    """A decoder of the run's sizes, by the ratios of gpt_deepnorm and of TorchScale's RetNet."""
    if run.model == "gpt":
        sizes = side_options(["decoder"], "DeepNorm", layers=run.layers, width=run.width, heads=run.heads)
        return Decoder(DecoderConfig(**sizes, no_scale_embedding=False))
    inner = run.width * 27 // 16
    return RetNetDecoder(
        RetNetConfig(
            vocab_size=VOCABULARY,
            decoder_layers=run.layers,
            decoder_embed_dim=run.width,
            decoder_value_embed_dim=inner,
            decoder_ffn_embed_dim=inner,
            decoder_retention_heads=run.heads,
            activation_fn="swish",
            no_scale_embedding=False,
        )
    )


def draw_examples(count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (count, length), and what is to be predicted at each, likewise; -100 for nothing."""

    def distinct(first: int, end: int) -> Tensor:
        return torch.rand(count, end - first, generator=generator).argsort(1)[:, :PAIRS] + first

    keys, values = distinct(*KEYS), distinct(*VALUES)
    tokens = torch.randint(KEYS[0], VALUES[1], (count, length), generator=generator)
    tokens[:, : 2 * PAIRS] = torch.stack((keys, values), 2).flatten(1)
    gaps = torch.arange(1, (length - 2 * PAIRS) // 2 + 1) ** GAP_EXPONENT
    places = 2 * PAIRS + 2 * gaps.expand(count, -1).multinomial(PAIRS, generator=generator)
    targets = torch.full((count, length), -100)
    return tokens.scatter(1, places, keys), targets.scatter(1, places, values)


@torch.no_grad()
def recall(model: Decoder | RetNetDecoder, tokens: Tensor, targets: Tensor, device: str) -> float:
    """Share of the values that are the model's first choice."""
    model.eval()
    choices = torch.cat([model(part.to(device))[0].argmax(-1).cpu() for part in tokens.split(250)])
    asked = targets >= 0
    return float((choices == targets)[asked].float().mean())


def draw(report: Result) -> "Figure":
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, sharex=True, figsize=(10, 4.5))
    best = {model: max(r["recall"] for r in report["runs"] if r["model"] == model) for model in MODELS}
    for run in report["runs"]:
        colour, marker = LOOKS[run["model"]]
        look = {"color": COLOURS[colour], "linewidth": 0.8, "alpha": 0.5}
        if run["recall"] == best[run["model"]]:
            rate = run["training"]["learning_rate"]
            label = f"{run['model']}, {run['parameters']:,} parameters, learning rate {rate:g}"
            look = {"color": COLOURS[colour], "marker": marker, "markersize": 4, "label": label}
        updates = [point["update"] for point in run["points"]]
        for panel, what in zip(panels, ("recall", "loss"), strict=True):
            panel.plot(updates, [point[what] for point in run["points"]], **look)
    panels[0].axhline(1 / PAIRS, color="grey", linestyle=":", label="any of the listed values")
    panels[0].set(xlabel="update", ylabel="share of values recalled, held-out examples", ylim=(-0.03, 1.03))
    panels[1].set(xlabel="update", ylabel="training loss (nats per value)", yscale="log")
    panels[0].legend()
    return figure


EXPERIMENT = Experiment("associative_recall", __doc__, runs, measure, draw, reads_text=False)

if __name__ == "__main__":
    main(EXPERIMENT)
