"""Prints what a model that was trained with --task image_classification says of image files.

The first line names the columns; each other line is a file, its likeliest class and a probability for each class,
separated by tabs. Of a model that was trained with --labels, it is a file, its risk (the higher, the sooner the event)
and the probabilities S(t) that the event has not come before time t, where bins of time meet.

A file that is no image is named on stderr, and the next ones are classified; the exit code then is 1.
"""

import argparse
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from torchscale_fairseq import plugin
from torchscale_fairseq.checkpoints.reading import CheckpointError
from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.images.patches import ImagePatches
from torchscale_fairseq.data.problems import DataError


class Classifier:
    """A model, and what it needs to read images.

    Args:
        checkpoint: of --task image_classification.
        device: where it computes.

    Raises:
        InputError: the checkpoint is another task's.
        OSError, CheckpointError: it cannot be read.
    """

    def __init__(self, checkpoint: Path, device: str):
        from fairseq import checkpoint_utils  # which takes seconds that --help is spared

        models, config, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)])
        if config.task._name != "image_classification":
            raise InputError(
                f"{checkpoint} was trained with --task {config.task._name}; a model of --task image_classification "
                "classifies images"
            )
        self.model: Any = models[0].eval().to(device)
        self.task = task
        self.sizes = (task.cfg.img_size, task.cfg.patch_size)

    @torch.no_grad()
    def __call__(self, image: Path) -> list[tuple[str, str]]:
        """Columns of the table, and their cells.

        Raises:
            DataError: the file is no image.
        """
        found: list[tuple[str, str]] = self.task.reading(self.model([ImagePatches(image, *self.sizes)])[0])
        return found


def main() -> int:
    options = parse_options()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly when head has seen enough
    plugin.register()
    try:
        classifier = Classifier(options.checkpoint, options.device)
        images = list(files(options.images, classifier.task.cfg.labels))
        failed = print_table(classifier, images)
        if failed:
            raise InputError(f"{failed} of {len(images)} files could not be read; the others stand in the table")
    except (InputError, CheckpointError, OSError) as error:
        print(f"classify_images.py: {error}", file=sys.stderr)
        return 1
    return 0


def print_table(classifier: Classifier, images: list[Path]) -> int:
    """Prints a line for each image, and returns how many files could not be read."""
    headed, failed = False, 0
    for image in images:
        try:
            names, cells = zip(*classifier(image), strict=True)
        except DataError as error:
            print(f"classify_images.py: {error}", file=sys.stderr)
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


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="classify_images.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="of --task image_classification")
    parser.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to compute; default: cuda if there is one, otherwise cpu",
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="files, or folders of them")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
