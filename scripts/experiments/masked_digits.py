"""Masked image modelling where labels are few: handwritten digits, a tenth of which have labels.

scikit-learn's 1,797 digits of 8 x 8 pixels are split anew for each seed. A small ViT is pretrained on all training
images without labels, and fine-tuned on a tenth of them with labels. It is compared with the same model from random
values: trained alike on the tenth, trained on it for as many updates as both trainings have, and on all labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.experiments import common
from torchscale_fairseq.core.architectures.masked_image import MaskedImageModel
from torchscale_fairseq.core.architectures.vit import ViTClassifier
from torchscale_fairseq.core.config import ViTConfig
from torchscale_fairseq.core.ops.masked_patches import normalised
from torchscale_fairseq.data.images.block_masks import BlockMasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRETRAINED, RANDOM, LONGER, ALL_LABELS = "pretrained", "random", "random, longer", "random, all labels"
STARTS = (PRETRAINED, LONGER, ALL_LABELS, RANDOM)
SEEDS = 5
HELD_OUT = 360
"""Images to measure on."""
LABELLED = 0.1
"""Share of the training images that have labels."""
BRIGHTEST = 16
"""Largest value of a pixel."""
CONFIG = ViTConfig(
    img_size=8,
    patch_size=2,
    in_chans=1,
    encoder_layers=2,
    encoder_embed_dim=64,
    encoder_ffn_embed_dim=256,
    encoder_attention_heads=4,
    subln=False,
    pooling="mean",
)
MASKS = BlockMasks(side=4, ratio=0.4, smallest=2)


@dataclass(frozen=True)
class Digits:
    """One model."""

    start: str
    pretraining: int
    """Updates without labels."""
    updates: int
    """Updates with labels."""
    seed: int


class Images(NamedTuple):
    """Images (images, 1, 8, 8), seen as -1 to 1, and their digits (images,)."""

    pixels: Tensor
    digits: Tensor


def runs(small: bool, seed: int) -> Sequence[Digits]:
    """Each start with each seed."""
    pretraining, updates = (200, 100) if small else (800, 300)
    return [
        Digits(
            start,
            pretraining if start == PRETRAINED else 0,
            pretraining + updates if start in (LONGER, ALL_LABELS) else updates,
            seed + number,
        )
        for number in range(1 if small else SEEDS)
        for start in STARTS
    ]


def measure(run: Digits, _: common.Text, device: str) -> common.Result:
    """Train one model, and read its accuracy in percent on held-out images."""
    train, few, held_out = (Images(*(part.to(device) for part in images)) for images in split(run.seed))
    labelled = train if run.start == ALL_LABELS else few
    torch.manual_seed(run.seed)
    masked, classifier = MaskedImageModel(CONFIG).to(device), ViTClassifier(CONFIG, 10).to(device)
    result: common.Result = {"labelled": len(labelled.digits)}
    if run.pretraining:
        result["patch_loss"] = pretrain(masked, train.pixels, run)
        encoder = masked.model.state_dict()
        classifier.model.load_state_dict({name: encoder[name] for name in classifier.model.state_dict()})
    result["training_loss"] = fine_tune(classifier, labelled, updates=run.updates, seed=run.seed)
    return {**result, "accuracy": accuracy(classifier, held_out)}


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: Images) -> float:
    """Percent of the images whose digits a classifier names."""
    right = model.eval()(images.pixels).argmax(-1) == images.digits
    return round(100 * float(right.float().mean()), 2)


def split(seed: int) -> tuple[Images, Images, Images]:
    """The training images, those of them that have labels, and the held-out images, with each digit in proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    loaded: Any = load_digits()
    pixels, digits = loaded.images[:, None] / BRIGHTEST * 2 - 1, loaded.target
    places = np.arange(len(digits))
    train, held_out = train_test_split(places, test_size=HELD_OUT, random_state=seed, stratify=digits)
    few, _ = train_test_split(train, train_size=LABELLED, random_state=seed, stratify=digits[train])
    first, second, third = (
        Images(torch.tensor(pixels[chosen], dtype=torch.float32), torch.tensor(digits[chosen]))
        for chosen in (train, few, held_out)
    )
    return first, second, third


def pretrain(model: MaskedImageModel, pixels: Tensor, run: Digits) -> float:
    """Train on hidden patches; return the mean loss of the last hundred updates."""
    rng = np.random.default_rng(run.seed)
    masks = torch.from_numpy(np.stack([MASKS(rng) for _ in range(1000)])).to(pixels.device)

    def loss(generator: torch.Generator) -> Tensor:
        images = pixels[torch.randint(len(pixels), (64,), generator=generator)]
        masked = masks[torch.randint(len(masks), (64,), generator=generator)]
        patches = F.unfold(images, CONFIG.patch_size, stride=CONFIG.patch_size).transpose(1, 2)
        return F.mse_loss(model(images, masked), normalised(patches[masked]))

    return _train(model, loss, run.pretraining, run.seed)


def fine_tune(model: torch.nn.Module, images: Images, *, updates: int, seed: int, learning_rate: float = 1e-3) -> float:
    """Train on labels; return the mean loss of the last hundred updates."""

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(images.digits), (32,), generator=generator)
        return F.cross_entropy(model(images.pixels[chosen]), images.digits[chosen])

    return _train(model, loss, updates, seed, learning_rate)


def _train(model: torch.nn.Module, loss: Any, updates: int, seed: int, learning_rate: float = 1e-3) -> float:
    training = common.Training(learning_rate, updates, warmup=updates // 20, batch=0, length=0, seed=seed)
    losses = torch.stack(list(common.updates(model, loss, training)))
    return round(float(losses[-100:].mean()), 4)


def draw(report: common.Result) -> "Figure":
    """A bar per start with a point per seed."""
    return bars({start: [run["accuracy"] for run in report["runs"] if run["start"] == start] for start in STARTS})


def bars(accuracies: Mapping[str, Sequence[float]]) -> "Figure":
    """A bar of the mean per name, with the standard deviation and a point per accuracy in percent."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    for place, points in enumerate(accuracies.values()):
        axes.bar(place, np.mean(points), 0.6, yerr=np.std(points), color=common.COLOURS["sky"])
        axes.plot([place] * len(points), points, "o", markersize=3, color=common.COLOURS["black"])
    axes.set_xticks(range(len(accuracies)), list(accuracies))
    axes.set_ylim(min(map(min, accuracies.values())) - 5, 100)
    axes.set_ylabel("held-out accuracy, %")
    return figure


if __name__ == "__main__":
    common.main(common.Experiment("masked_digits", __doc__, runs=runs, measure=measure, draw=draw, reads_text=False))
