"""``--task image_classification``: images of any size in a folder per class, or in an index with labels."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.tasks import register_task
from torch import Tensor

from torchscale_fairseq.data.images.folders import read_classes, read_folders
from torchscale_fairseq.data.images.labels import indexed_classes, read_indexed
from torchscale_fairseq.data.problems import Problems

from ._images import ImageConfig, ImageTask
from ._labelled import ClassReading
from ._survival import SurvivalTask

logger = logging.getLogger(__name__)


@register_task("image_classification", dataclass=ImageConfig)
class ImageClassificationTask(ClassReading, ImageTask):
    """Classes are the folders, or the labels of the index, of the training split. A checkpoint remembers them."""

    predicts = "classes"

    @classmethod
    def setup_task(cls, cfg: ImageConfig, from_checkpoint: bool = False, **_: Any) -> ImageTask:
        """Make the task; with --labels the one that reads them instead."""
        if cfg.labels:
            return SurvivalTask.setup_task(cfg, from_checkpoint)
        return super().setup_task(cfg, from_checkpoint)

    def learned(self) -> dict[str, list[Any]]:
        """The classes, in the order of the model's scores."""
        index = self._index(self.cfg.train_subset)
        classes = indexed_classes(index) if index.exists() else read_classes(index.with_suffix(""))
        logger.info("%s classes: %s", len(classes), ", ".join(classes))
        return {"classes": classes}

    def labelled(self, split: str, problems: Problems) -> tuple[Sequence[Path], Tensor, Sequence[int]]:
        """Images, and their classes as targets and groups."""
        index, classes = self._index(split), self.state.classes
        images, labels = (
            read_indexed(index, classes) if index.exists() else read_folders(index.with_suffix(""), classes)
        )
        return images, torch.tensor(labels), labels

    def _index(self, split: str) -> Path:
        """The index of a split, which may be there instead of a folder for each class."""
        return Path(self.cfg.data) / f"{split}.jsonl"
