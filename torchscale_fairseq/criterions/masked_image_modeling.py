"""``--criterion masked_image_modeling``: hidden patches of images, as pixels or as the ids of a tokenizer."""

from typing import Any

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.logging import metrics
from torch import Tensor

from torchscale_fairseq.core.ops.masked_patches import normalised


@register_criterion("masked_image_modeling")
class MaskedImageCriterion(FairseqCriterion):
    """A mean over hidden patches. For ids it is the cross-entropy in nats (BEiT, arXiv:2106.08254, eq. 1), and accuracy
    is logged in percent. For pixels it is the squared error, after each patch is normalised by its own mean and
    deviation (MAE, arXiv:2111.06377, sec. 4).
    """

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss, sample size (hidden patches) and logging outputs of a batch."""
        masked = sample["net_input"]["masked_patches"]
        predicted = model(**sample["net_input"])
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        counts = {"nsentences": sample["nsentences"], "ntokens": sample["ntokens"], "sample_size": len(predicted)}
        if "target" in sample:
            ids = sample["target"][masked]
            loss = F.cross_entropy(predicted, ids, reduction="sum")
            counts["right"] = predicted.argmax(-1).eq(ids).sum()
        else:
            pixels = sample["net_input"]["patches"][masked].flatten(1).to(predicted.dtype) / 127.5 - 1
            loss = F.mse_loss(predicted, normalised(pixels), reduction="none").mean(-1).sum()
        return loss, len(predicted), {"loss": loss.detach(), **counts}

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the means over batches and processes."""
        patches = sum(log["sample_size"] for log in logging_outputs)
        metrics.log_scalar("loss", sum(log["loss"] for log in logging_outputs) / patches, patches, round=4)
        if "right" in logging_outputs[0]:
            right = sum(log["right"] for log in logging_outputs)
            metrics.log_scalar("accuracy", 100.0 * right / patches, patches, round=2)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """They can."""
        return True
