"""``--criterion image_text``: masked words, masked patches, and whether image and text belong together."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from torchscale_fairseq.core.ops.masked_patches import normalised

LOSSES = ("word_loss", "patch_loss", "match_loss")


@dataclass
class ImageTextCriterionOptions(FairseqDataclass):
    """Weights of the parts."""

    word_loss_wt: float = field(default=1.0, metadata={"help": "weight of the loss of masked words"})
    patch_loss_wt: float = field(default=1.0, metadata={"help": "weight of the loss of masked patches"})
    match_loss_wt: float = field(default=1.0, metadata={"help": "weight of the loss of matching image and caption"})


@register_criterion("image_text", dataclass=ImageTextCriterionOptions)
class ImageTextCriterion(FairseqCriterion):
    """Per pair, the sum of three means: the cross-entropy of masked words and of matching, in nats, and the squared
    error of masked patches.

    BEiT-3 predicts visual tokens of a tokenizer whose weights are not part of this project; here a patch is predicted
    itself, normalised by its own mean and deviation (MAE, arXiv:2111.06377, sec. 4). Words and patches count alone and
    in pairs. Matching is measured on each pair and on the image with another caption.
    """

    def __init__(self, cfg: ImageTextCriterionOptions, task: Any):
        super().__init__(task)
        self.weights = (cfg.word_loss_wt, cfg.patch_loss_wt, cfg.match_loss_wt)
        self.patch_size = task.cfg.patch_size

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss, sample size (pairs) and logging outputs of a batch."""
        inputs = sample["net_input"]
        output = model(**inputs)
        pairs = sample["nsentences"]
        words = inputs["captions"][inputs["wanted"]]
        pixels = normalised_patches(inputs["images"], self.patch_size)[inputs["masked_patches"]]
        matching = torch.arange(2 * pairs, device=words.device) < pairs
        parts = (
            _mean([F.cross_entropy(scores.float(), words) for scores in output["words"]]),
            _mean([F.mse_loss(patches.float(), pixels) for patches in output["patches"]]),
            F.cross_entropy(output["match"].float(), matching.long()),
        )
        loss = pairs * sum(weight * part for weight, part in zip(self.weights, parts, strict=True))
        logged = {name: pairs * part.detach() for name, part in zip(LOSSES, parts, strict=True)}
        right = (output["match"].argmax(-1) == matching).sum()
        counts = {"nsentences": pairs, "ntokens": sample["ntokens"], "sample_size": pairs, "right": right}
        return loss, pairs, {"loss": loss.detach(), **logged, **counts}

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the means over batches and processes; match_accuracy in percent of pairs and wrong pairs."""
        pairs = sum(log["sample_size"] for log in logging_outputs)
        for name in ("loss", *LOSSES):
            metrics.log_scalar(name, sum(log[name] for log in logging_outputs) / pairs, pairs, round=3)
        right = sum(log["right"] for log in logging_outputs)
        metrics.log_scalar("match_accuracy", 100.0 * right / (2 * pairs), pairs, round=2)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """They can."""
        return True


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean()


def normalised_patches(images: Tensor, patch_size: int) -> Tensor:
    """(batch, channels, height, width) to (batch, patches, channels * patch_size ** 2), each patch of mean 0 and
    deviation 1."""
    return normalised(F.unfold(images.float(), patch_size, stride=patch_size).transpose(1, 2))
