"""``--criterion image_text_contrastive``: pairs against all other pairs of a batch, over all processes."""

from typing import Any

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics
from torch import Tensor

from torchscale_fairseq.core.ops.contrastive import contrastive_losses
from torchscale_fairseq.core.ops.recall import recalls

from ._images import total

RECALLS = [f"{direction}_r{k}" for direction in ("text_to_image", "image_to_text") for k in (1, 5, 10)]


@register_criterion("image_text_contrastive", dataclass=FairseqDataclass)
class ImageTextContrastiveCriterion(FairseqCriterion):
    """The contrastive loss in nats per pair. In training, the other pairs are those of the batches of all processes,
    and in validation those of one batch; recalls in percent are over the whole split, whatever the batches."""

    def __init__(self, cfg: FairseqDataclass, task: Any):
        super().__init__(task)

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss, sample size (pairs) and logging outputs of a batch."""
        images, texts, scale = model(**sample["net_input"])
        images, texts, pairs = images.float(), texts.float(), sample["nsentences"]
        counted = pairs if sample.get("counts", True) else 0
        losses = contrastive_losses(
            images[:counted], texts[:counted], scale.float(), _group() if model.training else None
        )
        loss = losses.sum() if counted else 0.0 * (images.sum() + texts.sum() + scale) + losses.sum()
        logged: dict[str, Any] = {"loss": loss.detach(), "nsentences": pairs, "sample_size": pairs}
        logged |= {"ntokens": sample["ntokens"], "scale": pairs * scale.detach().float()}
        if not model.training:
            logged |= {"images": images.cpu(), "texts": texts.cpu(), "owners": sample["target"].cpu()}
        return loss, pairs, logged

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the means over batches and processes, and the recalls of a validation."""
        pairs = sum(log["sample_size"] for log in logging_outputs)
        for name in ("loss", "scale"):
            metrics.log_scalar(name, total(log[name] for log in logging_outputs) / pairs, pairs, round=4)
        if "owners" in logging_outputs[0]:
            for name in ("images", "texts", "owners"):
                metrics.log_concat_tensor(f"_{name}", torch.cat([log[name] for log in logging_outputs]))
            for name in RECALLS:
                metrics.log_derived(name, lambda meters, name=name: _recalls(meters)[name])

    def logging_outputs_can_be_summed(self) -> bool:
        """Those of training; the embeddings of a validation cannot."""
        return self.training


def _group() -> Any:
    """The processes that have other batches, or None if there is one process."""
    return distributed_utils.get_data_parallel_group() if torch.distributed.is_initialized() else None


def _recalls(meters: Any) -> dict[str, float]:
    images, texts, owners = (meters[f"_{name}"].tensor for name in ("images", "texts", "owners"))
    if owners is None:
        return dict.fromkeys(RECALLS, float("nan"))
    return recalls_of_pairs(images, texts, owners)


def recalls_of_pairs(images: Tensor, texts: Tensor, owners: Tensor) -> dict[str, float]:
    """Recalls where an image comes once with each of its texts.

    Args:
        images, texts: (pairs, width).
        owners: (pairs,), the number of each pair's image.
    """
    numbers, image_of_text = owners.unique(return_inverse=True)
    first = torch.full((len(numbers),), len(owners)).scatter_reduce(0, image_of_text, torch.arange(len(owners)), "amin")
    return recalls(images[first], texts, image_of_text)
