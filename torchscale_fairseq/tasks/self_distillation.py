"""``--task self_distillation``: DINO, pre-training of vision transformers on images without labels."""

from typing import Any

import torch
from fairseq.distributed import utils as distributed_utils
from fairseq.tasks import register_task

from torchscale_fairseq.core.ops.self_distillation import cosine_momentum
from torchscale_fairseq.data.images.multi_crop_dataset import MultiCropDataset
from torchscale_fairseq.data.problems import Problems

from ._images import readable
from ._self_distillation_options import SelfDistillationConfig, check_options, crop_kinds
from ._unlabelled import UnlabelledTask


@register_task("self_distillation", dataclass=SelfDistillationConfig)
class SelfDistillationTask(UnlabelledTask):
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

    def load_dataset(self, split: str, **_: Any) -> None:
        """Open a split.

        Raises:
            DataError: something is wrong with the data.
        """
        cfg = self.cfg
        problems = Problems(skip=cfg.skip_invalid)
        images = self.images(split, problems)
        kept = readable(cfg, images, split, problems)
        first, second, local = crop_kinds(cfg)
        self.datasets[split] = MultiCropDataset(
            [images[place] for place in kept],
            global_crops=(first, second),
            local_crops=(local,) * cfg.local_crops,
            patch_size=cfg.patch_size,
            shuffle=split == cfg.train_subset,
            seed=cfg.seed,
        )

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
