"""Options of ``--task self_distillation``."""

import dataclasses
from dataclasses import dataclass, field

from omegaconf import II, MISSING

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.data.images.crops import CropKind
from torchscale_fairseq.hooks.options.surfaces import flag_of

from ._images import ReadingConfig, augmentation, check_reading, check_whole_patches

FRACTIONS = (
    "gray_prob",
    "first_blur_prob",
    "second_blur_prob",
    "local_blur_prob",
    "solarize_prob",
    "teacher_momentum",
    "center_momentum",
)
LEAST = {
    "local_crops": 0,
    "prototypes": 1,
    "head_dim": 1,
    "bottleneck_dim": 1,
    "freeze_last_layer_updates": 0,
    "teacher_momentum_updates": 0,
}


@dataclass
class SelfDistillationConfig(ReadingConfig):
    """Options of the task."""

    data: str = field(
        default=MISSING,
        metadata={
            "help": "directory with images in train/ and valid/, in folders of any depth, or with train.jsonl and "
            "valid.jsonl that name them"
        },
    )
    img_size: int = field(default=1024, metadata={"help": "height and width of the two global crops in pixels"})
    local_img_size: int = field(default=512, metadata={"help": "height and width of local crops in pixels"})
    patch_size: int = field(default=32, metadata={"help": "height and width of a patch in pixels"})
    local_crops: int = field(default=8, metadata={"help": "number of local crops of an image"})
    min_crop: float = field(
        default=0.4,
        metadata={
            "help": ("smallest fraction of the image's area that a global crop shows, and the largest of a local crop")
        },
    )
    min_local_crop: float = field(
        default=0.05, metadata={"help": "smallest fraction of the image's area that a local crop shows"}
    )
    color_jitter: float = field(
        default=0.4, metadata={"help": "largest random change of brightness, contrast and saturation, as a fraction"}
    )
    gray_prob: float = field(default=0.2, metadata={"help": "probability that a crop loses its colours"})
    first_blur_prob: float = field(default=1.0, metadata={"help": "probability of blurring the first global crop"})
    second_blur_prob: float = field(default=0.1, metadata={"help": "probability of blurring the second global crop"})
    local_blur_prob: float = field(default=0.5, metadata={"help": "probability of blurring a local crop"})
    solarize_prob: float = field(
        default=0.2, metadata={"help": "probability of inverting the bright pixels of the second global crop"}
    )
    prototypes: int = field(default=65536, metadata={"help": "number of outputs of the projection head"})
    head_dim: int = field(default=2048, metadata={"help": "inner width of the projection head"})
    bottleneck_dim: int = field(
        default=256, metadata={"help": "width of the projection head's unit vector, in front of its last layer"}
    )
    freeze_last_layer_updates: int = field(
        default=1000, metadata={"help": "number of first updates in which the projection head's last layer is frozen"}
    )
    teacher_momentum: float = field(
        default=0.996,
        metadata={
            "help": "weight of the teacher in its moving average at the first update; it rises to 1 along a cosine"
        },
    )
    teacher_momentum_updates: int = field(
        default=0, metadata={"help": "number of updates after which that weight is 1 (0: those of --max-update)"}
    )
    center_momentum: float = field(
        default=0.9, metadata={"help": "weight of the center in the moving average of the teacher's outputs"}
    )
    max_update: int = II("optimization.max_update")


def crop_kinds(cfg: SelfDistillationConfig) -> tuple[CropKind, CropKind, CropKind]:
    """The first and the second global crop, and local crops."""
    wide = augmentation(cfg)
    narrow = dataclasses.replace(wide, min_crop=cfg.min_local_crop, max_crop=cfg.min_crop)
    return (
        CropKind(cfg.img_size, wide, cfg.gray_prob, cfg.first_blur_prob),
        CropKind(cfg.img_size, wide, cfg.gray_prob, cfg.second_blur_prob, cfg.solarize_prob),
        CropKind(cfg.local_img_size, narrow, cfg.gray_prob, cfg.local_blur_prob),
    )


def check_options(cfg: SelfDistillationConfig) -> None:
    """Check the values of options.

    Raises:
        InputError: one is out of its range.
    """
    check_reading(cfg)
    check_whole_patches("--local-img-size", cfg.local_img_size, cfg.patch_size)
    for name, least in LEAST.items():
        if getattr(cfg, name) < least:
            raise InputError(f"{flag_of(name)} ({getattr(cfg, name)}) must be at least {least}.")
    for name in FRACTIONS:
        if not 0 <= getattr(cfg, name) <= 1:
            raise InputError(f"{flag_of(name)} ({getattr(cfg, name)}) must lie between 0 and 1.")
    if not 0 < cfg.min_local_crop <= cfg.min_crop:
        raise InputError(
            f"--min-local-crop ({cfg.min_local_crop}) must be above 0 and at most --min-crop ({cfg.min_crop})."
        )
    if not (cfg.teacher_momentum_updates or cfg.max_update):
        raise InputError(
            "the teacher's momentum rises to 1 in a number of updates, and there is none: give --max-update or "
            "--teacher-momentum-updates."
        )
