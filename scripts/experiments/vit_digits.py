"""Vision Transformers of one size on handwritten digits: this package's, and timm's.

scikit-learn's 1,797 digits of 8 x 8 pixels are split anew for each seed, and read as patches of 2 x 2 pixels. Models of
12 layers, width 192 and 3 heads, the size of DeiT's tiny ViT, train for as many updates on the same batches: timm's
vit_tiny_patch16_224, the plain ViT, and those with SubLN and with DeepNorm. Each has the better of two learning rates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from scripts.experiments import common
from scripts.experiments.masked_digits import Images, accuracy, bars, fine_tune, split
from torchscale_fairseq.core.architectures.vit import ViTClassifier
from torchscale_fairseq.core.config import ViTConfig
from torchscale_fairseq.core.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMM = "timm"
OURS = ("vit_tiny", "vit_magneto_tiny", "vit_deepnorm_tiny")
MODELS = (TIMM, *OURS)
RATES = (5e-4, 1e-3)
SEEDS = 2
PIXELS, PATCH = 8, 2
DIGITS = 10


@dataclass(frozen=True)
class ViT:
    """One model."""

    model: str
    learning_rate: float
    updates: int
    seed: int


def runs(small: bool, seed: int) -> Sequence[ViT]:
    """Each model with each rate and seed."""
    seeds, rates, updates = (1, RATES[:1], 60) if small else (SEEDS, RATES, 300)
    return [ViT(model, rate, updates, seed + n) for n in range(seeds) for rate in rates for model in MODELS]


def measure(run: ViT, _: common.Text, device: str) -> common.Result:
    """Train one model, and read its accuracy in percent on held-out images."""
    train, _few, held_out = (Images(*(part.to(device) for part in images)) for images in split(run.seed))
    torch.manual_seed(run.seed)
    model = build(run.model).to(device)
    loss = fine_tune(model, train, updates=run.updates, seed=run.seed, learning_rate=run.learning_rate)
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "training_loss": loss, "accuracy": accuracy(model, held_out)}


def build(name: str) -> nn.Module:
    """A model of one of ``MODELS``.

    Raises:
        InputError: timm is not installed.
    """
    if name != TIMM:
        from torchscale_fairseq.models._presets import VISION  # needs fairseq, which --help does without

        options: dict[str, Any] = {**VISION[name], "img_size": PIXELS, "patch_size": PATCH, "in_chans": 1}
        return ViTClassifier(ViTConfig(**options), DIGITS)
    try:
        import timm
    except ImportError as error:
        raise InputError("timm is not installed; install it (pip install timm)") from error
    shape = {"img_size": PIXELS, "patch_size": PATCH, "in_chans": 1, "num_classes": DIGITS}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", **shape)
    return model


def best_runs(report: common.Result) -> dict[str, list[common.Result]]:
    """The runs of each model with its better rate, by the mean accuracy."""

    def of(model: str, rate: float) -> list[common.Result]:
        return [run for run in report["runs"] if run["model"] == model and run["learning_rate"] == rate]

    rates = sorted({run["learning_rate"] for run in report["runs"]})
    return {model: max((of(model, rate) for rate in rates), key=partial(mean_of, "accuracy")) for model in MODELS}


def mean_of(value: str, runs: Sequence[common.Result]) -> float:
    """Mean over runs of one of their values."""
    return float(np.mean([run[value] for run in runs]))


def summary(report: common.Result) -> dict[str, dict[str, float]]:
    """Of each model with its better rate: the rate, mean and standard deviation over the seeds of the accuracy in
    percent, and seconds of a training."""
    return {
        model: {
            "learning_rate": chosen[0]["learning_rate"],
            "accuracy": mean_of("accuracy", chosen),
            "deviation": float(np.std([run["accuracy"] for run in chosen])),
            "seconds": mean_of("seconds", chosen),
        }
        for model, chosen in best_runs(report).items()
    }


def draw(report: common.Result) -> "Figure":
    """A bar per model with a point per seed."""
    return bars({model: [run["accuracy"] for run in chosen] for model, chosen in best_runs(report).items()})


if __name__ == "__main__":
    common.main(common.Experiment("vit_digits", __doc__, runs=runs, measure=measure, draw=draw, reads_text=False))
