"""``--task image_classification``: images of any size in a folder per class, in shards, or in an index with labels."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.tasks import register_task
from torch import Tensor

from torchscale_fairseq.data.images.folders import read_classes, read_folders
from torchscale_fairseq.data.images.labels import classes_of, indexed_classes, listed, numbers_of, read_indexed
from torchscale_fairseq.data.images.shards import Labelled, find_shards, read_shards
from torchscale_fairseq.data.images.stored import ImageFile
from torchscale_fairseq.data.problems import Problems

from ._images import ImageConfig, ImageTask
from ._labelled import ClassReading
from ._survival import SurvivalTask

logger = logging.getLogger(__name__)


@register_task("image_classification", dataclass=ImageConfig)
class ImageClassificationTask(ClassReading, ImageTask):
    """The classes are the folders of the training split, or the labels of its shards or index. A checkpoint remembers
    them."""

    predicts = "classes"

    @classmethod
    def setup_task(cls, cfg: ImageConfig, from_checkpoint: bool = False, **_: Any) -> ImageTask:
        """Make the task; with --labels the one that reads them instead."""
        if cfg.labels:
            return SurvivalTask.setup_task(cfg, from_checkpoint)
        return super().setup_task(cfg, from_checkpoint)

    def learned(self) -> dict[str, list[Any]]:
        """The classes, in the order of the model's scores."""
        split = self.cfg.train_subset
        index, folder = self._index(split), Path(self.cfg.data) / split
        if shards := find_shards(folder):
            classes = classes_of((label for _, label in self._read(shards, split)), folder)
        else:
            classes = indexed_classes(index) if index.exists() else read_classes(folder)
        logger.info("%s", listed(classes))
        return {"classes": classes}

    def labelled(self, split: str, problems: Problems) -> tuple[Sequence[ImageFile], Tensor, Sequence[int]]:
        """Images, and their classes as targets and groups."""
        index, folder, classes = self._index(split), Path(self.cfg.data) / split, self.state.classes
        images: Sequence[ImageFile]
        if shards := find_shards(folder):
            read = self._read(shards, split)
            images, labels = (
                [image for image, _ in read],
                numbers_of(((label, image) for image, label in read), classes),
            )
        else:
            images, labels = read_indexed(index, classes) if index.exists() else read_folders(folder, classes)
        return images, torch.tensor(labels), labels

    def _read(self, shards: list[Path], split: str) -> list[Labelled]:
        return read_shards(shards, Path(self.cfg.data) / "index" / split)

    def _index(self, split: str) -> Path:
        """The index of a split, which may be there instead of a folder for each class."""
        return Path(self.cfg.data) / f"{split}.jsonl"
