"""Self-distillation on scikit-learn's digits: do vectors of one class come nearer to each other without labels?

Writes the 1,797 digits as images, of which the last 500 are held out, and trains longvit_tiny by --task
self_distillation on a CPU. Prints the percentage of held-out digits whose nearest neighbour among the others is of
their class (cosine), and that of a linear classifier, for the vectors of the untrained encoder, of the student and of
the teacher, and for the pixels themselves. A second call skips a training that is finished.
"""

import argparse
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.experiments.steps import parser_of, step, train
from torchscale_fairseq.core.reporting import run_command

HELD_OUT = 500
TRAINING = shlex.split(
    "--user-dir torchscale_fairseq --task self_distillation --criterion self_distillation --arch longvit_tiny "
    "--img-size 32 --patch-size 8 --local-img-size 16 --local-crops 2 --min-crop 0.5 --min-local-crop 0.2 "
    "--color-jitter 0.2 --solarize-prob 0 --first-blur-prob 0.1 --local-blur-prob 0.1 --prototypes 256 "
    "--head-dim 256 --bottleneck-dim 64 --freeze-last-layer-updates 40 --teacher-temp 0.02 "
    "--warmup-teacher-temp 0.02 --batch-size 64 --optimizer adam --adam-betas (0.9,0.98) --weight-decay 0.04 "
    "--lr 3e-4 --lr-scheduler cosine --warmup-updates 50 --warmup-init-lr 1e-6 --clip-norm 0.3 --cpu --num-workers 0 "
    "--log-format simple --log-interval 20 --no-epoch-checkpoints --disable-validation"
)


def parse_options() -> argparse.Namespace:
    parser = parser_of("self_distilled_digits.py", __doc__)
    parser.add_argument("--max-update", type=int, default=300, metavar="N", help="updates (default: 300)")
    return parser.parse_args()


def write_digits(folder: Path) -> None:
    """Write train/DIGIT/NUMBER.png and valid/DIGIT/NUMBER.png."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "train" if number < len(digits.target) - HELD_OUT else "valid"
        (folder / split / str(label)).mkdir(parents=True, exist_ok=True)
        grey = (pixels * 255 / 16).round().astype(np.uint8)
        Image.fromarray(grey).save(folder / split / str(label) / f"{number}.png")


def accuracies(embed: Callable[[list[Path]], Tensor], data: Path) -> tuple[float, float]:
    """Percent of held-out images that the nearest neighbour and a linear classifier name rightly."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler, normalize

    files = {split: sorted((data / split).rglob("*.png")) for split in ("train", "valid")}
    labels = {split: [file.parent.name for file in found] for split, found in files.items()}
    vectors = {split: embed(found).double().numpy() for split, found in files.items()}
    nearest = KNeighborsClassifier(1).fit(normalize(vectors["train"]), labels["train"])
    scaler = StandardScaler().fit(vectors["train"])
    linear = LogisticRegression(max_iter=1000).fit(scaler.transform(vectors["train"]), labels["train"])
    right = (
        nearest.score(normalize(vectors["valid"]), labels["valid"]),
        linear.score(scaler.transform(vectors["valid"]), labels["valid"]),
    )
    return 100 * right[0], 100 * right[1]


@torch.no_grad()
def embedded(network: Any, size: int, files: list[Path]) -> Tensor:
    """The vectors of image files, scaled to this size, (files, width)."""
    from torchscale_fairseq.data.images.reading import load_image

    images = torch.stack([load_image(file, size) for file in files])
    return torch.cat([network(part) for part in images.split(256)])


def encoders(checkpoint: Path) -> dict[str, Callable[[list[Path]], Tensor]]:
    """From files to vectors, by name."""
    from torchscale_fairseq import plugin

    plugin.register()
    from torchscale_fairseq.models.longvit import LongViTModel

    hub = LongViTModel.from_pretrained(str(checkpoint.parent), checkpoint.name)
    torch.manual_seed(hub.cfg.common.seed)
    untrained, size = hub.task.build_model(hub.cfg.model).eval(), hub.task.cfg.img_size
    return {
        "pixels": partial(embedded, torch.nn.Flatten(), 8),
        "untrained": partial(embedded, untrained.student.embed, size),
        "student": partial(embedded, hub.model.student.embed, size),
        "teacher": partial(embedded, hub.model.teacher.network.embed, size),
    }


def conduct(options: argparse.Namespace) -> None:
    """Write the images, train, and print the table."""
    data, run = options.work_dir / "data/digits", options.work_dir / "runs/self_distilled_digits"
    step("images")
    if not data.exists():
        write_digits(data)
    step("training")
    train(run, [data, *TRAINING, "--max-update", str(options.max_update)])
    step("held-out digits, percent")
    print("vectors\tnearest neighbour\tlinear")
    for name, embed in encoders(run / "checkpoint_last.pt").items():
        print("{}\t{:.1f}\t{:.1f}".format(name, *accuracies(embed, data)), flush=True)


if __name__ == "__main__":
    run_command(partial(conduct, parse_options()))
