"""``--task self_distillation``: DINO, pre-training of vision transformers on images without labels."""

from pathlib import Path
from typing import Any

import torch
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks import register_task

from torchscale_fairseq.core.ops.self_distillation import cosine_momentum
from torchscale_fairseq.data.images.check import readable_images
from torchscale_fairseq.data.images.folders import read_unlabelled
from torchscale_fairseq.data.images.index import Format, read_index
from torchscale_fairseq.data.images.multi_crop_dataset import MultiCropDataset
from torchscale_fairseq.data.problems import Problems

from ._images import check_size
from ._pretrained import StartsFromWeights
from ._self_distillation_options import SelfDistillationConfig, check_options, crop_kinds

FORMAT = Format(text=(), example='{"image_path": "images/1.png"}')


@register_task("self_distillation", dataclass=SelfDistillationConfig)
class SelfDistillationTask(StartsFromWeights):
    """Reads images as crops, and lets the teacher follow the student after each update.

    Args:
        cfg: the options.

    Raises:
        InputError: an option is out of its range.
    """

    cfg: SelfDistillationConfig

    def __init__(self, cfg: SelfDistillationConfig):
        super().__init__(cfg)
        check_options(cfg)

    @classmethod
    def setup_task(cls, cfg: SelfDistillationConfig, **_: Any) -> "SelfDistillationTask":
        """Make the task, in training and from a checkpoint alike."""
        return cls(cfg)

    def load_dataset(self, split: str, **_: Any) -> None:
        """Open a split.

        Raises:
            DataError: something is wrong with the data.
        """
        cfg = self.cfg
        index, problems = Path(cfg.data) / f"{split}.jsonl", Problems(skip=cfg.skip_invalid)
        if index.exists():
            images = [line.images[0] for line in read_index(index, FORMAT, problems)]
        else:
            images = read_unlabelled(index.with_suffix(""))
        first, second, local = crop_kinds(cfg)
        kept = readable_images(images, cfg.img_size, Path(cfg.data), split, problems)
        problems.report(split)
        self.datasets[split] = MultiCropDataset(
            [images[place] for place in kept],
            global_crops=(first, second),
            local_crops=(local,) * cfg.local_crops,
            patch_size=cfg.patch_size,
            shuffle=split == cfg.train_subset,
            seed=cfg.seed,
        )

    def adapt_checkpoint(self, state: dict[str, Any], *, fine_tuning: bool, keep_optimizer: bool) -> None:
        """Refuse a checkpoint of another --img-size.

        Raises:
            InputError: see ``check_size``.
        """
        if keep_optimizer:
            check_size(state, self.cfg.img_size)

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, ignore_grad: bool = False
    ) -> Any:
        """Train on a batch. The center does not count the stale batch of a process that has run out of batches."""
        return super().train_step(
            {**sample, "counts": not ignore_grad}, model, criterion, optimizer, update_num, ignore_grad
        )

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        """Update the student, then the teacher and the center."""
        super().optimizer_step(optimizer, model, update_num)
        updates = self.cfg.teacher_momentum_updates or self.cfg.max_update
        momentum = cosine_momentum(update_num, updates, self.cfg.teacher_momentum)
        group = distributed_utils.get_data_parallel_group() if torch.distributed.is_initialized() else None
        model.follow_student(momentum, self.cfg.center_momentum, group)

    def max_positions(self) -> None:
        """There is no limit."""

    @property
    def source_dictionary(self) -> None:
        """There are no words."""

    @property
    def target_dictionary(self) -> None:
        """There are no words."""
