"""``--criterion visual_question_answering``: binary cross-entropy of answers with soft scores."""

from typing import Any

import torch.nn.functional as F
from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from ._images import ImageCriterion


@register_criterion("visual_question_answering", dataclass=FairseqDataclass)
class VisualQuestionAnsweringCriterion(ImageCriterion):
    """The sum over answers of the binary cross-entropy with their scores, in nats per question; vqa_score, the score of
    the likeliest answer, in percent (VQA v2, arXiv:1612.00837)."""

    def __init__(self, cfg: FairseqDataclass, task: Any):
        super().__init__(task)

    def losses(self, scores: Tensor, targets: Tensor) -> Tensor:
        """(questions, answers), twice, to (questions,)."""
        return F.binary_cross_entropy_with_logits(scores, targets.to(scores.dtype), reduction="none").sum(-1)

    def counts(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The sum of the scores of the likeliest answers."""
        return {"vqa_score": targets.gather(-1, scores.argmax(-1, keepdim=True)).sum()}
