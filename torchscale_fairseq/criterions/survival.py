"""``--criterion survival``: the likelihood of survival in discrete time, and the concordance index."""

from dataclasses import dataclass, field
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.survival import concordance_index, risk, survival_loss

from ._images import ImageCriterion, predicts


@dataclass
class SurvivalOptions(FairseqDataclass):
    """Options of the loss."""

    alpha_surv: float = field(
        default=0.0,
        metadata={"help": "fraction by which the loss of censored images is reduced; 0: the plain likelihood"},
    )


@register_criterion("survival", dataclass=SurvivalOptions)
class SurvivalCriterion(ImageCriterion):
    """Negative log-likelihood in nats per image; and in validation Harrell's concordance index of risks, each of which
    is minus the sum of a survival curve (as in MCAT, ICCV 2021, whose alpha --alpha-surv is).

    Raises:
        InputError: the task has no times, or an option is out of its range.
    """

    figures = ("c_index",)

    def __init__(self, cfg: SurvivalOptions, task: Any):
        super().__init__(task)
        if predicts(task) != "times":
            raise InputError(
                "--criterion survival needs --task image_classification with --labels, a table of times, or --task "
                "slide_classification with --label-columns time,event."
            )
        if not 0 <= cfg.alpha_surv < 1:
            raise InputError(f"--alpha-surv ({cfg.alpha_surv}) must be at least 0 and below 1.")
        self.censored_wt = 1 - cfg.alpha_surv

    def losses(self, scores: Tensor, targets: Tensor) -> Tensor:
        """(images, bins) and (images, 3), which are time, event and bin, to (images,)."""
        _, events, bins = targets.unbind(-1)
        losses = survival_loss(scores, bins.long(), events.bool())
        return losses.where(events.bool(), self.censored_wt * losses)

    @staticmethod
    def measure(scores: Tensor, targets: Tensor) -> dict[str, float]:
        """The concordance index, or NaN if no pair of images is comparable."""
        times, events, _ = targets.unbind(-1)
        return {"c_index": concordance_index(risk(scores.double()), times, events.bool())}
