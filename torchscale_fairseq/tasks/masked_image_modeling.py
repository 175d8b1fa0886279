"""``--task masked_image_modeling``: images without labels, some of whose patches are hidden and predicted."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq.tasks import register_task
from omegaconf import MISSING
from torch import Tensor

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.images.block_masks import BlockMasks
from torchscale_fairseq.data.images.masked_dataset import MaskedImages
from torchscale_fairseq.data.images.patch_ids import read_patch_ids
from torchscale_fairseq.data.problems import Problems

from ._images import ReadingConfig, augmentation, check_reading, readable
from ._unlabelled import UnlabelledTask


@dataclass
class MaskedImageConfig(ReadingConfig):
    """Options of the task."""

    data: str = field(
        default=MISSING,
        metadata={
            "help": (
                "directory with the images of each split in folders train and valid, at any depth, or in an index "
                "train.jsonl, valid.jsonl"
            )
        },
    )
    mask_ratio: float = field(
        default=0.4, metadata={"help": "hide blocks of patches until more than this fraction of an image is hidden"}
    )
    min_block_patches: int = field(default=16, metadata={"help": "smallest number of patches in a hidden block"})
    patch_vocab_size: int = field(
        default=0,
        metadata={
            "help": (
                "predict the ids, below this number, that a tokenizer gives the patches; the index lists them for each "
                "image as patch_ids; 0: predict the pixels of each patch, normalised"
            )
        },
    )


@register_task("masked_image_modeling", dataclass=MaskedImageConfig)
class MaskedImageTask(UnlabelledTask):
    """Reads images and draws masks for the criterion masked_image_modeling.

    Args:
        cfg: the options.

    Raises:
        InputError: an option is out of its range.
    """

    cfg: MaskedImageConfig

    def __init__(self, cfg: MaskedImageConfig):
        super().__init__(cfg)
        check_reading(cfg)
        _check(cfg)

    @property
    def patch_vocab_size(self) -> int:
        """Ids that are predicted for a patch; 0 for pixels."""
        return self.cfg.patch_vocab_size

    def load_dataset(self, split: str, **_: Any) -> None:
        """Open a split.

        Raises:
            DataError: something is wrong with the data.
        """
        cfg = self.cfg
        problems = Problems(skip=cfg.skip_invalid)
        images, ids = self._images_and_ids(split, problems)
        kept = readable(cfg, images, split, problems)
        self.datasets[split] = MaskedImages(
            [images[place] for place in kept],
            None if ids is None else ids[kept],
            BlockMasks(cfg.img_size // cfg.patch_size, cfg.mask_ratio, cfg.min_block_patches),
            img_size=cfg.img_size,
            patch_size=cfg.patch_size,
            augmentation=augmentation(cfg) if split == cfg.train_subset else None,
            seed=cfg.seed,
        )

    def _images_and_ids(self, split: str, problems: Problems) -> tuple[list[Path], Tensor | None]:
        """The images of a split, and the ids of their patches if those are predicted."""
        cfg = self.cfg
        if not cfg.patch_vocab_size:
            return self.images(split, problems), None
        return read_patch_ids(self.index(split), (cfg.img_size // cfg.patch_size) ** 2, cfg.patch_vocab_size, problems)


def _check(cfg: MaskedImageConfig) -> None:
    patches = (cfg.img_size // cfg.patch_size) ** 2
    if not 0 < cfg.mask_ratio < 1:
        raise InputError(f"--mask-ratio ({cfg.mask_ratio}) must lie between 0 and 1.")
    largest = int(cfg.mask_ratio * patches)
    if not 1 <= cfg.min_block_patches <= largest:
        raise InputError(
            f"--min-block-patches ({cfg.min_block_patches}) must be at least 1 and at most --mask-ratio "
            f"({cfg.mask_ratio}) of the {patches} patches of an image; {_remedy(largest)}."
        )
    if cfg.patch_vocab_size < 0:
        raise InputError(f"--patch-vocab-size ({cfg.patch_vocab_size}) must be positive, or 0 to predict pixels.")
    moving = {"--flip": cfg.flip, "--horizontal-flip": cfg.horizontal_flip, "--rotate": cfg.rotate}
    moving |= {f"--min-crop {cfg.min_crop}": cfg.min_crop < 1, f"--crop-aspect {cfg.crop_aspect}": cfg.crop_aspect != 1}
    moves = [flag for flag, given in moving.items() if given]
    if cfg.patch_vocab_size and moves:
        raise InputError(
            f"{moves[0]} does not fit --patch-vocab-size ({cfg.patch_vocab_size}), since patch_ids belong to the "
            "patches of the whole upright image; leave one of them out."
        )


def _remedy(largest: int) -> str:
    return f"use {largest}" if largest else "raise --mask-ratio, or give smaller patches (--patch-size)"
