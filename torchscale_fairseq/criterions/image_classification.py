"""``--criterion image_classification``: cross-entropy of classes, accuracy and AUC."""

from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from torchscale_fairseq.core.errors import InputError

from ._images import ImageCriterion, predicts


@dataclass
class ImageClassificationOptions(FairseqDataclass):
    """Options of the loss."""

    label_smoothing: float = field(
        default=0.0, metadata={"help": "fraction of the target's probability that is spread over all classes"}
    )


@register_criterion("image_classification", dataclass=ImageClassificationOptions)
class ImageClassificationCriterion(ImageCriterion):
    """Cross-entropy in nats per image; accuracy in percent; and in validation the area under the ROC curve, the mean
    over classes of each against the rest where there are more than two.

    Raises:
        InputError: label smoothing is out of its range, or the task has times instead of classes.
    """

    figures: tuple[str, ...] = ("auc",)

    def __init__(self, cfg: ImageClassificationOptions, task: Any):
        super().__init__(task)
        self._check_task(task)
        if not 0 <= cfg.label_smoothing < 1:
            raise InputError(f"--label-smoothing ({cfg.label_smoothing}) must be at least 0 and below 1.")
        self.label_smoothing = cfg.label_smoothing

    def _check_task(self, task: Any) -> None:
        if predicts(task) != "classes":
            raise InputError(f"--labels ({task.cfg.labels}) is for --criterion survival; give that, or no labels.")

    def losses(self, scores: Tensor, targets: Tensor) -> Tensor:
        """(images, classes) and (images,) to (images,)."""
        return F.cross_entropy(scores, targets, label_smoothing=self.label_smoothing, reduction="none")

    def counts(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Images whose class scores highest."""
        return {"accuracy": scores.argmax(-1).eq(targets).sum()}

    @staticmethod
    def measure(scores: Tensor, targets: Tensor) -> dict[str, float]:
        """AUC; NaN if all images are of one class."""
        return {"auc": area_under_curve(scores, targets)}


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
