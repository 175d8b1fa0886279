"""Print the output of a model of --task image_classification for image files, as a table with tabs between columns.

The first line names the columns. Each other line has a file, its likeliest class and the probability of each class.
A model that was trained with --labels gives a risk (the higher, the sooner the event) and the probabilities S(t) that
the event has not come before time t, where bins of time meet.

A file that is not an image is named on stderr, and the other files are classified; the exit code is then 1.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.reporting import print_sentence
from torchscale_fairseq.tools.progress import progress

EXAMPLE = "torchscale-fairseq classify-images --checkpoint runs/details/checkpoint_best.pt data/details/valid"


class Classifier:
    """A model, and what it needs to read images.

    Args:
        checkpoint: of --task image_classification.
        device: where it computes; None: on the GPU if there is one, else on the CPU.

    Raises:
        InputError: the checkpoint is of another task, or cannot be read.
    """

    def __init__(self, checkpoint: Path, device: str | None):
        import torch

        from torchscale_fairseq import plugin

        plugin.register()
        from fairseq import checkpoint_utils

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        models, config, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)])
        if config.task._name != "image_classification":
            raise InputError(
                f"{checkpoint} was trained with --task {config.task._name}; a model of --task image_classification "
                "classifies images"
            )
        self.model: Any = models[0].eval().to(device)
        self.task = task
        self.sizes = (task.cfg.img_size, task.cfg.patch_size)

    def __call__(self, image: Path) -> list[tuple[str, str]]:
        """Columns of the table, and their cells.

        Raises:
            DataError: the file is not an image.
        """
        import torch

        from torchscale_fairseq.data.images.patches import ImagePatches

        with torch.no_grad():
            found: list[tuple[str, str]] = self.task.reading(self.model([ImagePatches(image, *self.sizes)])[0])
        return found


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="FILE",
        help="a model trained with --task image_classification",
    )
    parser.add_argument("--device", help="cpu or cuda, where the model runs (default: cuda if there is a GPU)")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files, or folders of them")


def run(options: argparse.Namespace) -> None:
    classifier = Classifier(options.checkpoint, options.device)
    images = list(files(options.images, classifier.task.cfg.labels))
    failed = print_table(classifier, images, options.program)
    if failed:
        raise InputError(f"{failed} of {len(images)} files could not be read; the others stand in the table")


def print_table(classifier: Classifier, images: list[Path], program: str) -> int:
    """Print a line for each image, and return how many files could not be read."""
    from torchscale_fairseq.data.problems import DataError

    headed, failed = False, 0
    for image in progress(images, "classifying", "image", prints=True):
        try:
            names, cells = zip(*classifier(image), strict=True)
        except DataError as error:
            print_sentence(str(error), program)
            failed += 1
            continue
        if not headed:
            print("file", *names, sep="\t")
            headed = True
        print(image, *cells, sep="\t", flush=True)
    return failed


def files(paths: list[Path], labels: str) -> Iterator[Path]:
    """The paths, and what is in folders among them, folders below included, but no table of --labels."""
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] != "." and p.name != labels)
        else:
            yield path
