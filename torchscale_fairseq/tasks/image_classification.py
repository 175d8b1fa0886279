"""``--task image_classification``: images of any size in a folder per class."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING
from torch import Tensor

from torchscale_fairseq.data.image_dataset import ImageDataset
from torchscale_fairseq.data.image_folders import read_classes, read_folders
from torchscale_fairseq.data.image_views import Augmentation
from torchscale_fairseq.data.problems import DataError

logger = logging.getLogger(__name__)


@dataclass
class ImageConfig(FairseqDataclass):
    """Options of tasks that read images of any size."""

    data: str = field(default=MISSING, metadata={"help": "directory with train/CLASS/IMAGE and valid/CLASS/IMAGE"})
    img_size: int = field(default=1024, metadata={"help": "images are scaled to squares of so many pixels a side"})
    patch_size: int = field(default=32, metadata={"help": "pixels of a patch's side"})
    stream_above: int = field(
        default=4096,
        metadata={
            "help": "images of a larger --img-size are read a row of patches at a time in the model's forward pass, "
            "and again in the backward pass, and are never whole in memory; smaller ones by the data loader's workers"
        },
    )
    flip: bool = field(default=False, metadata={"help": "mirror training images at random, either way"})
    rotate: bool = field(
        default=False, metadata={"help": "turn training images at random by 0, 90, 180 or 270 degrees"}
    )
    color_jitter: float = field(
        default=0.0,
        metadata={
            "help": "largest random change of the brightness, contrast and saturation of training images, as a share"
        },
    )
    min_crop: float = field(
        default=1.0,
        metadata={"help": "train on random squares of images, of at least this share of the area; 1: on whole images"},
    )
    class_balanced: bool = field(
        default=False,
        metadata={"help": "draw training images so that all classes come up equally often; an epoch stays as long"},
    )
    seed: int = II("common.seed")
    train_subset: str = II("dataset.train_subset")


class ImageTask(FairseqTask):
    """Reads images and makes batches; what is predicted of an image is a subclass's.

    Args:
        cfg: the options.

    Raises:
        ValueError: an option is out of its range.
    """

    cfg: ImageConfig

    def __init__(self, cfg: ImageConfig):
        super().__init__(cfg)
        _check(cfg)
        self._share = (0, 1)

    @property
    def num_classes(self) -> int:
        """Scores that a model gives an image."""
        raise NotImplementedError

    def labelled(self, split: str) -> tuple[Sequence[Path], Tensor, Sequence[int]]:
        """The images of a split, their targets (images, ...), and which group each belongs to for --class-balanced.

        Raises:
            DataError: something is wrong with the data.
        """
        raise NotImplementedError

    def load_dataset(self, split: str, **_: Any) -> None:
        """Open a split.

        Raises:
            DataError: something is wrong with the data.
        """
        cfg = self.cfg
        images, targets, groups = self.labelled(split)
        training = split == cfg.train_subset
        self.datasets[split] = ImageDataset(
            images,
            targets,
            img_size=cfg.img_size,
            patch_size=cfg.patch_size,
            augmentation=Augmentation(cfg.flip, cfg.rotate, cfg.min_crop, cfg.color_jitter) if training else None,
            groups=groups if training and cfg.class_balanced else None,
            stream=cfg.img_size > cfg.stream_above,
            seed=cfg.seed,
        )
        self.share_sequences(*self._share)

    def share_sequences(self, rank: int, size: int) -> None:
        """From now on, read this process's slice of each image's patches alone (--seq-parallel).

        Args:
            rank, size: of the process among those that share an image, and their number.
        """
        self._share = (rank, size)
        for dataset in self.datasets.values():
            length = -(-dataset.patches // size)
            start, stop = (min(place * length, dataset.patches) for place in (rank, rank + 1))
            dataset.own = range(start, stop)

    @property
    def sequence_length(self) -> int:
        """Patches of an image."""
        return (self.cfg.img_size // self.cfg.patch_size) ** 2

    def max_positions(self) -> None:
        """All images have the same size."""

    @property
    def source_dictionary(self) -> None:
        """There are no words."""

    @property
    def target_dictionary(self) -> None:
        """There are no words."""


def _check(cfg: ImageConfig) -> None:
    if cfg.img_size < 1 or cfg.patch_size < 1 or cfg.img_size % cfg.patch_size:
        nearest = cfg.img_size - cfg.img_size % max(cfg.patch_size, 1) or cfg.patch_size
        raise ValueError(
            f"--img-size ({cfg.img_size}) must be a multiple of --patch-size ({cfg.patch_size}); use {nearest}."
        )
    if not 0 < cfg.min_crop <= 1:
        raise ValueError(f"--min-crop ({cfg.min_crop}) must be above 0 and at most 1, which is the whole image.")
    if not 0 <= cfg.color_jitter < 1:
        raise ValueError(f"--color-jitter ({cfg.color_jitter}) must be at least 0, which changes nothing, and below 1.")


@register_task("image_classification", dataclass=ImageConfig)
class ImageClassificationTask(ImageTask):
    """Classes are the folders of the training split. A checkpoint remembers them."""

    @classmethod
    def setup_task(cls, cfg: ImageConfig, from_checkpoint: bool = False, **_: Any) -> "ImageClassificationTask":
        """Make the task, with the classes of its training data unless a checkpoint is to tell them.

        Raises:
            DataError: there are no classes.
        """
        task = cls(cfg)
        if not from_checkpoint:
            task.state.merge_state_dict({"classes": read_classes(Path(cfg.data) / cfg.train_subset)})
            logger.info("%s classes: %s", len(task.classes), ", ".join(task.classes))
        return task

    @property
    def classes(self) -> list[str]:
        """Their names, in the order of the model's scores."""
        classes: list[str] = self.state.classes
        return classes

    @property
    def num_classes(self) -> int:
        """Scores that a model gives an image."""
        return len(self.classes)

    def adapt_checkpoint(self, state: dict[str, Any], *, fine_tuning: bool) -> None:
        """Look at a checkpoint before a run goes on from it. A run that begins from other classes' (fine_tuning) gets a
        new head.

        Raises:
            DataError: a run cannot go on, as the classes are others.
        """
        before = state.get("task_state", {}).get("classes")
        if before is None or before == self.classes:
            return
        if not fine_tuning:
            raise DataError(
                f"the checkpoint's classes are {', '.join(before)}, and those of {Path(self.cfg.data) / 'train'} "
                f"{', '.join(self.classes)}; give another --save-dir, and the checkpoint as --finetune-from-model."
            )
        for name in [name for name in state["model"] if name.startswith("head.")]:
            del state["model"][name]

    def labelled(self, split: str) -> tuple[Sequence[Path], Tensor, Sequence[int]]:
        """Images, and their classes as targets and groups."""
        images, labels = read_folders(Path(self.cfg.data) / split, self.classes)
        return images, torch.tensor(labels), labels
