"""``--criterion multi_label``: several labels per slide, each of which it has or lacks."""

import math
from typing import Any

import torch.nn.functional as F
from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from torchscale_fairseq.core.errors import InputError

from ._images import ImageCriterion, predicts


@register_criterion("multi_label", dataclass=FairseqDataclass)
class MultiLabelCriterion(ImageCriterion):
    """Binary cross-entropy in nats, averaged over labels; accuracy in percent of labels; in validation the area under
    the ROC curve of each label, and their mean.

    Raises:
        InputError: the task has one class per slide, or times.
    """

    def __init__(self, cfg: FairseqDataclass, task: Any):
        super().__init__(task)
        if predicts(task) != "labels":
            columns = getattr(task.cfg, "label_columns", "")
            raise InputError(
                f"--criterion multi_label needs --task slide_classification with --label-columns of several labels, "
                f"such as tumor,necrosis (not {columns or 'none'})."
            )
        self.task = task

    def losses(self, scores: Tensor, targets: Tensor) -> Tensor:
        """(slides, labels), twice, to (slides,)."""
        return F.binary_cross_entropy_with_logits(scores, targets.to(scores.dtype), reduction="none").mean(-1)

    def counts(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Labels that are right, as a share of a slide's labels."""
        return {"accuracy": (scores > 0).eq(targets > 0).float().mean(-1).sum()}

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """As of ``ImageCriterion``; a validation logs the labels' names, too."""
        loss, size, logged = super().forward(model, sample, reduce)
        return loss, size, logged if model.training else {**logged, "labels": self.task.state.labels}

    @classmethod
    def figures_of(cls, logged: dict[str, Any]) -> dict[str, str]:
        """The AUC of each label, and of all."""
        return {"auc": "auc", **{f"auc_{name}": f"auc_{place}" for place, name in enumerate(logged["labels"])}}

    @staticmethod
    def measure(scores: Tensor, targets: Tensor) -> dict[str, float]:
        """AUC per label, NaN if all slides have or lack it; and the mean of those that are not NaN."""
        areas = [_area(scores[:, place], targets[:, place]) for place in range(scores.size(-1))]
        known = [area for area in areas if not math.isnan(area)]
        mean = sum(known) / len(known) if known else float("nan")
        return {"auc": mean, **{f"auc_{place}": area for place, area in enumerate(areas)}}


def _area(scores: Tensor, targets: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    if len(targets.unique()) < 2:
        return float("nan")
    return float(roc_auc_score(targets.numpy() > 0, scores.double().numpy()))
