"""``--criterion slide_classification``: one class per slide."""

from typing import Any

import numpy as np
from fairseq.criterions import register_criterion
from torch import Tensor

from torchscale_fairseq.core.errors import InputError

from ._images import predicts
from .image_classification import ClassCriterion, ClassOptions, area_under_curve


@register_criterion("slide_classification", dataclass=ClassOptions)
class SlideClassificationCriterion(ClassCriterion):
    """Cross-entropy in nats per slide; accuracy in percent; in validation the area under the ROC curve (one class
    against the rest, averaged over classes), balanced accuracy and Cohen's kappa with quadratic weights, for which
    classes are in the order of the scores.

    Raises:
        InputError: label smoothing is out of its range, or the task has labels or times instead of classes.
    """

    figures = ("auc", "balanced_accuracy", "kappa")

    def _check_task(self, task: Any) -> None:
        if predicts(task) != "classes":
            other = {"labels": "multi_label", "times": "survival"}[predicts(task)]
            raise InputError(
                f"--label-columns {task.cfg.label_columns} gives {predicts(task)} instead of classes; add --criterion "
                f"{other}, or name a single column."
            )

    @staticmethod
    def measure(scores: Tensor, targets: Tensor) -> dict[str, float]:
        """Figures; NaN if all slides are of one class."""
        return {"auc": area_under_curve(scores, targets), **agreement(scores, targets)}


def agreement(scores: Tensor, targets: Tensor) -> dict[str, float]:
    """How the likeliest classes agree with the true ones.

    Args:
        scores: (slides, classes).
        targets: (slides,), indices of classes.

    Returns:
        balanced_accuracy, the mean over classes of the share that is recognised, in percent; and kappa, Cohen's with
        quadratic weights. NaN if all slides are of one class.
    """
    from sklearn.metrics import cohen_kappa_score, recall_score

    truth, found = targets.numpy(), scores.argmax(-1).numpy()
    present = np.unique(truth)
    if len(present) < 2:
        return {"balanced_accuracy": float("nan"), "kappa": float("nan")}
    recall = recall_score(truth, found, labels=present, average="macro", zero_division=0)
    classes = np.arange(scores.size(-1))
    return {
        "balanced_accuracy": 100.0 * float(recall),
        "kappa": float(cohen_kappa_score(truth, found, labels=classes, weights="quadratic")),
    }
