"""Print what a model says of image files (--task image_classification) or slides (--task slide_classification).

The output is a table with tabs between columns, whose first line names them. Each other line has a file, its likeliest
class and the probability of each class. A model of survival (--labels, or --label-columns time,event) gives a risk (the
higher, the sooner the event) and the probabilities S(t) that the event has not come before time t, where bins of time
meet.

--embeddings and --attribution are for slides. A file that cannot be used is named on stderr, and the other files are
classified; the exit code is then 1.
"""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.reporting import print_sentence
from torchscale_fairseq.tools.progress import progress

METHODS = ("gradient", "rollout")
TASKS = ("image_classification", "slide_classification")
EXAMPLE = "torchscale-fairseq classify-images --checkpoint runs/details/checkpoint_best.pt data/details/valid"


class Classifier:
    """A model, and what it needs to read images.

    Args:
        checkpoint: of --task image_classification or slide_classification.
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
        if config.task._name not in TASKS:
            raise InputError(
                f"{checkpoint} was trained with --task {config.task._name}; a model of --task {' or '.join(TASKS)} "
                "classifies files"
            )
        self.model: Any = models[0].eval().to(device)
        self.task = task
        self.reads_slides = config.task._name == "slide_classification"
        self.device = device

    def __call__(self, image: Path) -> list[tuple[str, str]]:
        """Columns of the table, and their cells.

        Raises:
            DataError: the file is not an image, or not a slide.
        """
        import torch

        with torch.no_grad():
            found: list[tuple[str, str]] = self.task.reading(self.model(**self.inputs(image))[0].cpu())
        return found

    def inputs(self, file: Path) -> dict[str, Any]:
        """The model's arguments for a file."""
        import torch

        given: dict[str, Any] = self.task.model_input(file)
        return {name: x.to(self.device) if torch.is_tensor(x) else x for name, x in given.items()}

    def embedding(self, file: Path) -> Any:
        """A slide's embedding (width,)."""
        import torch

        with torch.no_grad():
            return self.model.extract_features(**self.inputs(file))[0].float().cpu().numpy()

    def draw_attribution(self, file: Path, folder: Path, method: str) -> None:
        """Write FOLDER/NAME.png, in which red tiles raise the score of the likeliest class or label, or the risk; by
        rollout, tiles are the redder the larger their share in the slide's embedding is."""
        from torchscale_fairseq.data.slides.attribution import attention_rollout, draw, tile_attribution

        inputs = self.inputs(file)
        if method == "rollout":
            found = attention_rollout(self.model.model, inputs)
        else:
            found = tile_attribution(self.model, inputs, self.task.explained)
        draw(found, inputs["coords"][0].cpu(), self.model.model.config.tile_size, folder / f"{file.stem}.png")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="FILE",
        help="a model trained with --task image_classification or slide_classification",
    )
    parser.add_argument("--device", help="cpu or cuda, where the model runs (default: cuda if there is a GPU)")
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="image files or slides, or folders of them"
    )
    parser.add_argument("--embeddings", type=Path, metavar="FILE", help="write embeddings of slides to this .npz file")
    parser.add_argument(
        "--attribution", type=Path, metavar="FOLDER", help="draw for each slide which tiles raise or lower the score"
    )
    parser.add_argument(
        "--attribution-method",
        choices=METHODS,
        default=METHODS[0],
        help="gradient: features times the gradient of the score; rollout: each tile's share in the slide's embedding "
        "by attention rollout, whatever the class (gradient)",
    )


def run(options: argparse.Namespace) -> None:
    classifier = Classifier(options.checkpoint, options.device)
    if not classifier.reads_slides and (options.embeddings or options.attribution):
        raise InputError("--embeddings and --attribution are for models of --task slide_classification")
    images = list(files(options.images, classifier.task))
    failed = print_table(classifier, images, options.program)
    _write_more(classifier, images, options)
    if failed:
        others = "; the others stand in the table" if failed < len(images) else ""
        raise InputError(f"{failed} of {len(images)} files could not be read{others}")


def _write_more(classifier: Classifier, files: list[Path], options: argparse.Namespace) -> None:
    import numpy as np

    from torchscale_fairseq.core.files import make_directory, write_atomically
    from torchscale_fairseq.data.problems import DataError

    if options.attribution:
        make_directory(options.attribution)
    embeddings: dict[str, Any] = {}
    for file in progress(files, "explaining", "slide") if options.attribution or options.embeddings else ():
        with contextlib.suppress(DataError):  # named before
            if options.attribution:
                classifier.draw_attribution(file, options.attribution, options.attribution_method)
            if options.embeddings:
                embeddings[file.stem] = classifier.embedding(file)
    if options.embeddings:
        with write_atomically(options.embeddings) as scratch, scratch.open("wb") as stream:
            np.savez(stream, slides=np.array(list(embeddings)), embeddings=np.stack(list(embeddings.values())))


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


def files(paths: list[Path], task: Any) -> Iterator[Path]:
    """The paths, and the files that the task reads in folders among them, folders below included."""
    for path in paths:
        if path.is_dir() and path.suffix != ".zarr":
            yield from sorted(p for p in path.rglob("*") if p.name[0] != "." and task.reads(p))
        else:
            yield path
