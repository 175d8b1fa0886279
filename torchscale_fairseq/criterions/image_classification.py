"""``--criterion image_classification``: cross-entropy of classes, accuracy and AUC."""

from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.mixing import mix
from torchscale_fairseq.hooks.sequence_parallel import SLICE

from ._images import ImageCriterion, predicts


@dataclass
class ClassOptions(FairseqDataclass):
    """Options of the loss."""

    label_smoothing: float = field(
        default=0.0, metadata={"help": "fraction of the target's probability that is spread over all classes"}
    )


@dataclass
class ImageClassificationOptions(ClassOptions):
    """Options of the loss and of mixing images in training."""

    mixup: float = field(
        default=0.0,
        metadata={
            "help": (
                "train on images blended with others of their batch (Mixup); the share of each image is drawn from "
                "Beta(mixup, mixup); 0: off. With --cutmix too, each batch is mixed in one of the two ways"
            )
        },
    )
    cutmix: float = field(
        default=0.0,
        metadata={
            "help": (
                "train on images in which a rectangle is replaced by that of another image of the batch (CutMix); the "
                "share of each image is drawn from Beta(cutmix, cutmix); 0: off"
            )
        },
    )


class ClassCriterion(ImageCriterion):
    """Cross-entropy in nats per image; accuracy in percent; and in validation the area under the ROC curve, the mean
    over classes of each against the rest where there are more than two.

    Raises:
        InputError: label smoothing is out of its range, or the task has times instead of classes.
    """

    figures: tuple[str, ...] = ("auc",)

    def __init__(self, cfg: ClassOptions, task: Any):
        super().__init__(task)
        self._check_task(task)
        if not 0 <= cfg.label_smoothing < 1:
            raise InputError(f"--label-smoothing ({cfg.label_smoothing}) must be at least 0 and below 1.")
        self.label_smoothing = cfg.label_smoothing

    def _check_task(self, task: Any) -> None:
        if predicts(task) != "classes":
            raise InputError(f"--labels ({task.cfg.labels}) is for --criterion survival; give that, or no labels.")

    def losses(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Scores (images, classes) and targets (images,), or probabilities (images, classes), to losses (images,)."""
        return F.cross_entropy(scores, targets, label_smoothing=self.label_smoothing, reduction="none")

    def counts(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Images whose class, or most probable class, scores highest."""
        return {"accuracy": scores.argmax(-1).eq(targets.argmax(-1) if targets.dim() > 1 else targets).sum()}

    @staticmethod
    def measure(scores: Tensor, targets: Tensor) -> dict[str, float]:
        """AUC; NaN if all images are of one class."""
        return {"auc": area_under_curve(scores, targets)}


@register_criterion("image_classification", dataclass=ImageClassificationOptions)
class ImageClassificationCriterion(ClassCriterion):
    """Classification loss that can mix the images of a training batch. The draws depend on seed and update alone.

    Raises:
        InputError: an option is out of its range, or the task has times instead of classes.
    """

    def __init__(self, cfg: ImageClassificationOptions, task: Any):
        super().__init__(cfg, task)
        for option in ("mixup", "cutmix"):
            if getattr(cfg, option) < 0:
                raise InputError(f"--{option} ({getattr(cfg, option)}) must be at least 0, which mixes nothing.")
        self.mixup, self.cutmix = cfg.mixup, cfg.cutmix

    @property
    def computes_alike(self) -> bool:
        """Whether updates can be recorded as CUDA graphs: a mixture of images is drawn on the host."""
        return not (self.mixup or self.cutmix)

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss, sample size and logging outputs of a batch; images are mixed in training.

        Raises:
            InputError: the images of the batch cannot be mixed.
        """
        if model.training and (self.mixup or self.cutmix):
            sample = self._mixed(sample)
        return super().forward(model, sample, reduce)

    def _mixed(self, sample: Any) -> Any:
        inputs, targets = sample["net_input"], F.one_hot(sample["target"], self.task.num_classes).float()
        patches = inputs.get("patches")
        option = "mixup" if self.mixup else "cutmix"
        if SLICE in inputs:
            raise InputError(f"--{option} mixes whole images, and --seq-parallel splits them; drop one of the two.")
        if not isinstance(patches, Tensor):
            raise InputError(
                f"--{option} mixes images of --task image_classification that are read whole; drop it, or give a "
                "--stream-above of at least --img-size."
            )
        patches, targets = mix(patches, targets, self.mixup, self.cutmix)
        return {**sample, "net_input": {**inputs, "patches": patches}, "target": targets}


def area_under_curve(scores: Tensor, targets: Tensor) -> float:
    """ROC AUC. With more than two classes, the mean one-vs-rest AUC over the classes that occur.

    Args:
        scores: (images, classes), logits.
        targets: (images,), indices of classes.
    """
    from sklearn.metrics import roc_auc_score

    present = targets.unique().tolist()
    if len(present) < 2:
        return float("nan")
    areas = [roc_auc_score(targets.eq(c).numpy(), _log_odds(scores.double(), c).numpy()) for c in present]
    return float(sum(areas) / len(areas))


def _log_odds(scores: Tensor, chosen: int) -> Tensor:
    """Scores of a class; they rank images like its probability, whose values near 1 are too close to distinguish."""
    others = [c for c in range(scores.size(-1)) if c != chosen]
    return scores[:, chosen] - scores[:, others].logsumexp(-1)
