"""A mixin that adds mixtures of experts to any criterion: their balance loss, and figures for the log."""

from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.logging import metrics
from torch import Tensor

from torchscale_fairseq.core.layers.moe import RoutingReport

LOGGED = ("gate_loss", "z_loss", "dropped", "entropy", "load_most", "load_least", "unused")
BATCHES = "moe_batches"


@dataclass
class MixtureOptions:
    """Options of the criterions for models with experts."""

    moe_gate_loss_wt: float = field(
        default=0.01, metadata={"help": "weight of the experts' balance loss, per target token"}
    )
    moe_gate_loss_combine_method: ChoiceEnum(["average", "sum"]) = field(  # type: ignore[valid-type]
        default="average", metadata={"help": "combination of the layers' balance losses: their average or their sum"}
    )
    moe_z_loss_wt: float = field(
        default=0.0, metadata={"help": "weight of the router z-loss (ST-MoE), which keeps the router's scores small"}
    )


class MixtureCriterion:
    """Mixed into a criterion ahead of it.

    Optimised is the criterion's loss plus, per unit of its sample size, moe_gate_loss_wt times the balance losses and
    moe_z_loss_wt times the z-losses of the layers. Logged as ``loss`` is the criterion's own, which compares with that
    of a model without experts; logged separately are moe_gate_loss, moe_z_loss, moe_dropped (percent of the choices
    that found no place), moe_entropy (of the gate, nats), moe_load_most and moe_load_least (percent of an even share)
    and moe_unused (experts), means over layers and batches.
    """

    mixture: MixtureOptions

    @classmethod
    def build_criterion(cls, cfg: Any, task: Any) -> Any:
        """The criterion for its part of fairseq's configuration."""
        criterion = super().build_criterion(cfg, task)  # type: ignore[misc]
        criterion.mixture = cfg
        return criterion

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> tuple[Tensor, Any, dict[str, Any]]:
        """Loss, sample size and logging outputs of a batch."""
        recorder = _Recorder(model)
        loss, sample_size, logged = super().forward(recorder, sample, reduce)  # type: ignore[misc]
        reports = [report for report in recorder.extra.get("routing", ()) if report is not None]
        if not reports:
            return loss, sample_size, logged
        figures = _mean_over_layers(reports)
        balance, z = figures["gate_loss"], figures["z_loss"]
        if self.mixture.moe_gate_loss_combine_method == "sum":
            balance = balance * len(reports)
        more = self.mixture.moe_gate_loss_wt * balance + self.mixture.moe_z_loss_wt * z
        logged = {**logged, **{f"moe_{name}": value.detach() for name, value in figures.items()}, BATCHES: 1}
        return loss + sample_size * more.to(loss.dtype), sample_size, logged

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the means over batches and processes."""
        super().reduce_metrics(logging_outputs)  # type: ignore[misc]
        batches = sum(log.get(BATCHES, 0) for log in logging_outputs)
        if batches > 0:
            for name in LOGGED:
                total = sum(log.get(f"moe_{name}", 0) for log in logging_outputs)
                metrics.log_scalar(f"moe_{name}", total / batches, batches, round=3)


class _Recorder:
    """A model that also stores its output, since not all criterions return it."""

    def __init__(self, model: Any):
        self._model = model
        self.extra: dict[str, Any] = {}

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        output = self._model(*arguments, **keywords)
        self.extra = output[1] or {}
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _mean_over_layers(reports: list[RoutingReport]) -> dict[str, Tensor]:
    """Each figure as the mean over layers, in float32."""
    every = [{"gate_loss": r.balance_loss, "z_loss": r.z_loss, **r.statistics} for r in reports]
    return {name: torch.stack([figures[name].float() for figures in every]).mean() for name in LOGGED}
