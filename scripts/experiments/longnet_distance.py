"""LongNet's claim: its largest segments see far, at the cost of few tokens.

LongNet, arXiv:2307.02486. Somewhere in the first quarter of a text of 4,096 bytes stand a key and its value; in the
last 256 bytes the key comes again, and the model is to answer with the value. Two LongNets of two layers learn it from
texts of 32 bytes first, then longer ones: one with segments of 16, 256 and 4,096 bytes, and the same without the
largest. Of every four bytes the largest segment keeps one for each head. The pair stands where its value and the
queries have the same remainder, so that one of the four heads sees the value from there.

    python -m scripts.experiments.longnet_distance --output docs/claims
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scripts.experiments.common import (
    COLOURS,
    UPDATES_PER_POINT,
    VOCABULARY,
    Experiment,
    Result,
    Text,
    Training,
    as_tensor,
    draw_windows,
    main,
    train,
)
from torchscale_fairseq import DecoderConfig, LongNetDecoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = 8
"""Keys, and values; their numbers follow those of the bytes."""
HEADS = 4
LOOKS = {"LongNet": ("blue", "o"), "without its largest segment": ("orange", "s")}
"""Colour and marker of each."""


@dataclass(frozen=True)
class Run:
    model: str
    segments: tuple[int, ...]
    ratios: tuple[int, ...]
    phases: tuple[Training, ...]
    """One after the other, with longer and longer texts."""


def runs(small: bool, seed: int) -> list[Run]:
    # Length, batch, updates.
    plan = [(32, 64, 250), (128, 32, 100), (512, 8, 150)] + ([] if small else [(4096, 4, 100)])
    phases = tuple(Training(3e-3, updates, 20, batch, length, seed) for length, batch, updates in plan)
    segments, ratios = ((16, 128, 512) if small else (16, 256, 4096)), (1, 2, 4)
    full, near = list(LOOKS)
    return [Run(full, segments, ratios, phases), Run(near, segments[:-1], ratios[:-1], phases)]


def measure(run: Run, text: Text, device: str) -> Result:
    torch.manual_seed(run.phases[0].seed)
    longest = max(phase.length for phase in run.phases)
    config = DecoderConfig(
        vocab_size=VOCABULARY + 2 * KINDS,
        decoder_embed_dim=32,
        decoder_ffn_embed_dim=64,
        decoder_attention_heads=HEADS,
        decoder_layers=2,
        segment_length=run.segments,
        dilated_ratio=run.ratios,
        no_token_positional_embeddings=True,
        no_scale_embedding=False,
        share_decoder_input_output_embed=True,
        subln=False,
        max_target_positions=longest,
    )
    model = LongNetDecoder(config).to(device)

    def loss(windows: Tensor, generator: torch.Generator) -> Tensor:
        logits, values = answers(model, *plant(windows, generator))
        return torch.nn.functional.cross_entropy(logits, values)

    train_text, held_out = as_tensor(text.train, device), as_tensor(text.held_out, device)
    losses = [train(model, loss, train_text, phase) for phase in run.phases]
    lengths = [2**n for n in range(5, longest.bit_length())]
    return {
        "training_loss": [value for of_phase in losses for value in of_phase],
        "accuracy": [{"length": n, "accuracy": accuracy(model, held_out, n)} for n in lengths],
    }


def plant(windows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put a key, its value and queries into texts.

    Args:
        windows: (batch, length), bytes; 32 or more.
        generator: of what is random.

    Returns:
        The texts, and the value at each query, -100 elsewhere.
    """
    batch, length = windows.shape

    def draw(end: int) -> Tensor:
        return torch.randint(end, (batch, 1), generator=generator)

    remainder, key, value = draw(HEADS), VOCABULARY + draw(KINDS), VOCABULARY + KINDS + draw(KINDS)
    place = remainder + HEADS * (1 + draw(max(length // 4, 16) // HEADS - 1))
    last = min(length // 4, 256)
    queries = length - last + remainder + torch.arange(0, last, HEADS)
    remainder, key, value, place, queries = (x.to(windows.device) for x in (remainder, key, value, place, queries))
    planted = windows.scatter(1, place - 1, key).scatter(1, place, value)
    planted = planted.scatter(1, queries, key.expand_as(queries))
    return planted, torch.full_like(windows, -100).scatter(1, queries, value.expand_as(queries))


def answers(model: LongNetDecoder, tokens: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at the queries, (queries of all texts, vocabulary), and the values."""
    asked = values >= 0
    features, _ = model(tokens, features_only=True)
    return model.output_layer(features[asked]), values[asked]


@torch.no_grad()
def accuracy(model: LongNetDecoder, text: Tensor, length: int, texts: int = 64) -> float:
    """Share of right answers in texts that are the same for every model."""
    generator = torch.Generator().manual_seed(0)
    model.eval()
    right = []
    for _ in range(texts // 4):
        planted, values = plant(draw_windows(text, 4, length, generator), generator)
        logits, expected = answers(model, planted, values)
        right.append((logits.argmax(-1) == expected).float().mean())
    return round(float(torch.stack(right).mean()), 4)


def draw(report: Result) -> "Figure":
    from matplotlib import pyplot

    figure, (losses, accuracies) = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for run in report["runs"]:
        name, (colour, marker) = run["model"], LOOKS[run["model"]]
        updates = [(point + 0.5) * UPDATES_PER_POINT for point in range(len(run["training_loss"]))]
        losses.plot(updates, run["training_loss"], color=COLOURS[colour], label=name)
        found = run["accuracy"]
        lengths = [row["length"] for row in found]
        accuracies.plot(lengths, [row["accuracy"] for row in found], color=COLOURS[colour], marker=marker)
    start = 0
    for phase in report["runs"][0]["phases"]:
        losses.axvline(start, color="grey", linewidth=0.8)
        losses.annotate(
            f"{phase['length']:,}", (start, 1), (3, -3), ("data", "axes fraction"), "offset points", va="top"
        )
        start += phase["updates"]
    losses.set(xlabel="update, and bytes of the texts", ylabel="training loss (nats)")
    accuracies.axhline(1 / KINDS, color="grey", linestyle=":", label="guessing")
    accuracies.set(xscale="log", xlabel="bytes of the text", ylabel="right answers", ylim=(0, 1.04))
    accuracies.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=45)
    accuracies.minorticks_off()
    figure.legend(loc="outside upper center", ncols=3)
    return figure


EXPERIMENT = Experiment("longnet_distance", __doc__, runs, measure, draw)

if __name__ == "__main__":
    main(EXPERIMENT)
