"""The base of image criterions: the loss per image, and figures of a whole validation."""

from collections.abc import Iterable
from typing import Any

import torch
from fairseq.criterions import FairseqCriterion
from fairseq.logging import metrics
from torch import Tensor

from torchscale_fairseq.hooks.contracts import PredictsTargets
from torchscale_fairseq.hooks.sequence_parallel import SLICE

COUNT = "count_"
"""Begins names of what ``ImageCriterion.counts`` returns, in logging outputs."""


def predicts(task: Any) -> str:
    """The kind of target that a task has: classes, labels (any number of them per example) or times."""
    return task.predicts if isinstance(task, PredictsTargets) else "classes"


def total(values: Iterable[Tensor]) -> Tensor:
    """The sum of scalars in float64, left on their device: reading it would make the host wait in each update."""
    return torch.stack([value.double() for value in values]).sum()


class ImageCriterion(FairseqCriterion):
    """A mean over images. In validation, scores and targets of all images are gathered from all processes, each once,
    for figures that are no means."""

    figures: tuple[str, ...] = ()
    """Names of what ``measure`` returns."""

    def losses(self, scores: Tensor, targets: Tensor) -> Tensor:
        """(images, scores) in float32, and (images, ...), to (images,)."""
        raise NotImplementedError

    def counts(self, scores: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Other sums over images, which are logged as means, in percent of images."""
        return {}

    @staticmethod
    def measure(scores: Tensor, targets: Tensor) -> dict[str, float]:
        """Figures of all images of a validation; NaN where they say too little."""
        return {}

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss, sample size (images) and logging outputs of a batch. Processes that share images all compute the loss,
        and each counts its share of it."""
        scores, targets = model(**sample["net_input"]).float(), sample["target"]
        part = sample["net_input"].get(SLICE)
        share = 1.0 if part is None else 1.0 / part.size
        loss = share * self.losses(scores, targets).sum()
        images = sample["nsentences"]
        logged: dict[str, Any] = {"loss": loss.detach(), "nsentences": images, "sample_size": images}
        logged["ntokens"] = sample["ntokens"]
        logged |= {f"{COUNT}{name}": share * count for name, count in self.counts(scores, targets).items()}
        if not model.training:
            own = slice(0 if part is None or part.rank == 0 else images, None)
            logged["scores"], logged["targets"] = scores.detach()[own].cpu(), targets[own].cpu()
        return loss, images, logged

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the means over batches and processes, and the figures."""
        images = sum(log["sample_size"] for log in logging_outputs)
        loss = total(log["loss"] for log in logging_outputs)
        metrics.log_scalar("loss", loss / images, images, round=4)
        for name in logging_outputs[0]:
            if name.startswith(COUNT):
                count = total(log[name] for log in logging_outputs)
                metrics.log_scalar(name.removeprefix(COUNT), 100.0 * count / images, images, round=2)
        if "scores" in logging_outputs[0]:
            for name in ("scores", "targets"):
                metrics.log_concat_tensor(f"_{name}", torch.cat([log[name] for log in logging_outputs]))
            for name, measured in cls.figures_of(logging_outputs[0]).items():
                metrics.log_derived(name, lambda meters, measured=measured: cls._figure(meters, measured))

    @classmethod
    def figures_of(cls, logged: dict[str, Any]) -> dict[str, str]:
        """Names under which figures are logged, and those that ``measure`` gives them.

        Args:
            logged: of a batch.
        """
        return {name: name for name in cls.figures}

    @classmethod
    def _figure(cls, meters: Any, name: str) -> float:
        scores, targets = meters["_scores"].tensor, meters["_targets"].tensor
        return float("nan") if scores is None else cls.measure(scores, targets)[name]

    def logging_outputs_can_be_summed(self) -> bool:
        """Those of training; the scores of a validation cannot."""
        return self.training
