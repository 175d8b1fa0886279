"""The base of tasks that read images of any size."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq.dataclass import FairseqDataclass
from omegaconf import II, MISSING

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.images.check import readable_images
from torchscale_fairseq.data.images.dataset import ImageDataset
from torchscale_fairseq.data.images.patches import ImagePatches
from torchscale_fairseq.data.images.stored import ImageFile
from torchscale_fairseq.data.images.transforms import LARGEST_MAGNITUDE, ImageTransform, load_transforms
from torchscale_fairseq.data.images.views import Augmentation
from torchscale_fairseq.data.problems import Problems

from ._labelled import LabelledTask

SKIP_INVALID = "report, count and skip unreadable images and invalid lines of tables, instead of ending with an error"


@dataclass
class ReadingConfig(FairseqDataclass):
    """Options of tasks that read images from files and augment them."""

    data: str = field(default=MISSING, metadata={"help": "directory with the images of each split"})
    img_size: int = field(default=224, metadata={"help": "scale images to squares of this many pixels a side"})
    patch_size: int = field(default=16, metadata={"help": "height and width of a patch in pixels"})
    flip: bool = field(default=False, metadata={"help": "flip training images horizontally and vertically at random"})
    rotate: bool = field(
        default=False, metadata={"help": "rotate training images by 0, 90, 180 or 270 degrees at random"}
    )
    color_jitter: float = field(
        default=0.0,
        metadata={
            "help": ("largest random change of brightness, contrast and saturation of training images, as a fraction")
        },
    )
    min_crop: float = field(
        default=1.0,
        metadata={
            "help": "train on random square crops with at least this fraction of the image's area; 1: whole images"
        },
    )
    crop_aspect: float = field(
        default=1.0,
        metadata={
            "help": (
                "with --min-crop: largest aspect ratio of random crops, such as 1.333, either way; 1: crops have that "
                "of the image"
            )
        },
    )
    horizontal_flip: bool = field(default=False, metadata={"help": "flip training images left to right at random"})
    skip_invalid: bool = field(default=False, metadata={"help": SKIP_INVALID})
    seed: int = II("common.seed")
    train_subset: str = II("dataset.train_subset")


@dataclass
class ImageConfig(ReadingConfig):
    """Options of tasks that read images of any size."""

    data: str = field(
        default=MISSING,
        metadata={
            "help": (
                "directory with train/CLASS/IMAGE and valid/CLASS/IMAGE; with shards in train and valid (*.tar or "
                "*.parquet); or with train/LABELS, valid/LABELS"
            )
        },
    )
    labels: str = field(
        default="",
        metadata={
            "help": (
                "for --criterion survival: name of a CSV file in each split's folder with the columns image, "
                "time and event (1: observed at that time; 0: not observed until then, censored)"
            )
        },
    )
    time_bins: int = field(
        default=4,
        metadata={"help": "with --labels: number of time bins, cut at quantiles of the training set's event times"},
    )
    img_size: int = field(default=1024, metadata={"help": "scale images to squares of this many pixels a side"})
    patch_size: int = field(default=32, metadata={"help": "height and width of a patch in pixels"})
    stream_above: int = field(
        default=4096,
        metadata={
            "help": (
                "if --img-size is larger (in pixels), read images one row of patches at a time in the forward "
                "and again in the backward pass, so that no image is whole in memory; smaller images are read "
                "whole by the data loader's workers"
            )
        },
    )
    rand_augment: int = field(
        default=0,
        metadata={"help": "number of random operations on each training image (RandAugment); 0: none"},
    )
    rand_augment_magnitude: int = field(
        default=9, metadata={"help": f"strength of the operations of --rand-augment, from 0 to {LARGEST_MAGNITUDE}"}
    )
    random_erasing: float = field(
        default=0.0, metadata={"help": "probability that a random rectangle of a training image is made grey"}
    )
    class_balanced: bool = field(
        default=False,
        metadata={
            "help": (
                "draw all classes equally often in training (with --labels: all time bins, observed and "
                "censored apart); the number of images per epoch does not change"
            )
        },
    )


class ImageTask(LabelledTask):
    """Reads images and makes batches; what is predicted of an image is a subclass's.

    Args:
        cfg: the options.

    Raises:
        InputError: an option is out of its range.
    """

    cfg: ImageConfig
    criterions = "--task image_classification needs --criterion image_classification or, with --labels, survival"

    def __init__(self, cfg: ImageConfig):
        super().__init__(cfg)
        check_reading(cfg)
        _check_transform(cfg)
        if cfg.time_bins < 2:
            raise InputError(f"--time-bins ({cfg.time_bins}) must be at least 2.")
        self._share = (0, 1)

    def model_input(self, path: Path) -> dict[str, Any]:
        """The model's arguments for one image."""
        return {"patches": [ImagePatches(path, self.cfg.img_size, self.cfg.patch_size)]}

    def reads(self, path: Path) -> bool:
        """Whether a path in a folder may be an image."""
        return path.is_file() and path.name != self.cfg.labels

    def adapt_checkpoint(self, state: dict[str, Any], *, fine_tuning: bool, keep_optimizer: bool) -> None:
        """Look at a checkpoint before a run resumes from it.

        Raises:
            DataError: a run cannot resume, as its scores mean something else.
            InputError: see ``check_task`` and ``check_size``.
        """
        check_task(state, self.cfg)
        super().adapt_checkpoint(state, fine_tuning=fine_tuning, keep_optimizer=keep_optimizer)

    def check_resumed(self, state: dict[str, Any]) -> None:
        """Refuse a checkpoint of another --img-size.

        Raises:
            InputError: see ``check_size``.
        """
        check_size(state, self.cfg.img_size)

    def load_dataset(self, split: str, **_: Any) -> None:
        """Open a split.

        Raises:
            DataError: something is wrong with the data.
        """
        cfg = self.cfg
        problems = Problems(skip=cfg.skip_invalid)
        images, targets, groups = self.labelled(split, problems)
        kept = readable(cfg, images, split, problems)
        training = split == cfg.train_subset
        self.datasets[split] = ImageDataset(
            [images[place] for place in kept],
            targets[kept],
            img_size=cfg.img_size,
            patch_size=cfg.patch_size,
            augmentation=augmentation(cfg) if training else None,
            groups=[groups[place] for place in kept] if training and cfg.class_balanced else None,
            stream=cfg.img_size > cfg.stream_above,
            seed=cfg.seed,
            transform=self._transform() if training else None,
        )
        self.share_sequences(*self._share)

    def _transform(self) -> ImageTransform | None:
        """The transform of whole training images.

        Raises:
            InputError: images are not read whole, or torchvision was built for another torch.
            ModuleNotFoundError: torchvision is not installed.
        """
        cfg = self.cfg
        if not cfg.rand_augment and not cfg.random_erasing:
            return None
        option = "--rand-augment" if cfg.rand_augment else "--random-erasing"
        if cfg.img_size > cfg.stream_above:
            raise InputError(
                f"{option} changes whole images, and --img-size ({cfg.img_size}) is above --stream-above "
                f"({cfg.stream_above}); drop {option}, or give --stream-above {cfg.img_size}."
            )
        load_transforms()
        return ImageTransform(cfg.rand_augment, cfg.rand_augment_magnitude, cfg.random_erasing)

    def share_sequences(self, rank: int, size: int) -> None:
        """From now on, read this process's slice of each image's patches alone (--seq-parallel).

        Args:
            rank, size: of the process among those that share an image, and their number.

        Raises:
            InputError: an augmentation needs whole images.
        """
        self._share = (rank, size)
        if size > 1 and (self.cfg.rand_augment or self.cfg.random_erasing):
            raise InputError(
                "--rand-augment and --random-erasing change whole images, and --seq-parallel splits them; drop one."
            )
        for dataset in self.datasets.values():
            length = -(-dataset.patches // size)
            start, stop = (min(place * length, dataset.patches) for place in (rank, rank + 1))
            dataset.own = range(start, stop)

    @property
    def sequence_length(self) -> int:
        """Patches of an image."""
        return (self.cfg.img_size // self.cfg.patch_size) ** 2


def check_size(state: dict[str, Any], img_size: int) -> None:
    """Check that the optimizer can resume. Position embeddings are interpolated to another img_size; the optimizer's
    averages of their gradients cannot be.

    Raises:
        InputError: the checkpoint has such averages, for another img_size.
    """
    before = state["cfg"]["task"]["img_size"]
    optimizer = state.get("last_optimizer_state") or {}
    if before != img_size and optimizer.get("state"):
        raise InputError(
            f"the checkpoint was trained with --img-size {before}, and this run has --img-size {img_size}, for which "
            "the optimizer cannot resume; add --reset-optimizer, or give the checkpoint as --finetune-from-model."
        )


def check_task(state: dict[str, Any], cfg: FairseqDataclass) -> None:
    """Check that a checkpoint is of this task: models of the same architecture have other heads for other tasks.

    Raises:
        InputError: it is of another task.
    """
    saved = state.get("cfg")
    before = saved["task"]["_name"] if saved else cfg._name
    if before != cfg._name:
        raise InputError(
            f"the checkpoint is of --task {before}, and this run has --task {cfg._name}; give another --save-dir, and "
            "the checkpoint as --pretrained to begin from its encoder."
        )


def check_whole_patches(option: str, size: int, patch_size: int) -> None:
    """Check that a side consists of whole patches.

    Args:
        option: that gives the side, as typed.
        size: of the side in pixels.
        patch_size: of a patch's side in pixels.

    Raises:
        InputError: it does not.
    """
    if size < 1 or patch_size < 1 or size % patch_size:
        nearest = size - size % max(patch_size, 1) or patch_size
        raise InputError(f"{option} ({size}) must be a multiple of --patch-size ({patch_size}); use {nearest}.")


def check_reading(cfg: ReadingConfig) -> None:
    """Check how images are to be read and augmented.

    Raises:
        InputError: an option is out of its range.
    """
    check_whole_patches("--img-size", cfg.img_size, cfg.patch_size)
    if not 0 < cfg.min_crop <= 1:
        raise InputError(f"--min-crop ({cfg.min_crop}) must be above 0 and at most 1, which is the whole image.")
    if cfg.crop_aspect < 1:
        raise InputError(f"--crop-aspect ({cfg.crop_aspect}) must be at least 1, which is the image's own.")
    if not 0 <= cfg.color_jitter < 1:
        raise InputError(f"--color-jitter ({cfg.color_jitter}) must be at least 0, which changes nothing, and below 1.")


def readable(cfg: ReadingConfig, images: Sequence[ImageFile], split: str, problems: Problems) -> list[int]:
    """The places of a split's images that can be read; the problems found are reported.

    Raises:
        DataError: some cannot be read, and --skip-invalid is off.
    """
    kept = readable_images(images, cfg.img_size, Path(cfg.data), split, problems)
    problems.report(split)
    return kept


def augmentation(cfg: ReadingConfig) -> Augmentation:
    """The augmentation of training images."""
    return Augmentation(
        flip=cfg.flip,
        rotate=cfg.rotate,
        min_crop=cfg.min_crop,
        color_jitter=cfg.color_jitter,
        horizontal_flip=cfg.horizontal_flip,
        crop_aspect=cfg.crop_aspect,
    )


def _check_transform(cfg: ImageConfig) -> None:
    if cfg.rand_augment < 0:
        raise InputError(f"--rand-augment ({cfg.rand_augment}) must be at least 0, which changes nothing.")
    if not 0 <= cfg.rand_augment_magnitude <= LARGEST_MAGNITUDE:
        raise InputError(
            f"--rand-augment-magnitude ({cfg.rand_augment_magnitude}) must be from 0 to {LARGEST_MAGNITUDE}."
        )
    if not 0 <= cfg.random_erasing <= 1:
        raise InputError(f"--random-erasing ({cfg.random_erasing}) must be a probability, from 0 to 1.")
