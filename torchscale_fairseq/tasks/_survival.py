"""``--task image_classification --labels FILE``: the classes of images are bins of time."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchscale_fairseq.core.ops.survival import risk, survival_curve
from torchscale_fairseq.data.problems import Problems
from torchscale_fairseq.data.survival import Survival, bins_of, read_survival, time_edges

from ._images import ImageTask

logger = logging.getLogger(__name__)


class TimeBins:
    """A mixin of tasks that predict survival: time is cut into bins at quantiles of the training set's event times, and
    the checkpoint stores the edges."""

    cfg: Any
    state: Any
    predicts = "times"
    examples = "images"
    """A word for messages."""

    def learned(self) -> dict[str, list[Any]]:
        """Where all bins but the first begin, in the table's unit of time."""
        table = self._table(self.cfg.train_subset, Problems(skip=self.cfg.skip_invalid))
        edges = time_edges(table, self.cfg.time_bins)
        logger.info(
            "%s %s, %s events; bins of time begin at 0, %s",
            len(table.images),
            self.examples,
            int(table.events.sum()),
            ", ".join(f"{edge:g}" for edge in edges),
        )
        return {"time edges": edges}

    @property
    def num_classes(self) -> int:
        """Bins, whose hazards a model scores."""
        return self.cfg.time_bins

    def reading(self, scores: Tensor) -> list[tuple[str, str]]:
        """The risk, and the probabilities S(t) that the event has not come before time t."""
        curve = survival_curve(scores.double()).tolist()[:-1]
        survived = [(f"S({edge:g})", f"{p:.4f}") for edge, p in zip(self._edges, curve, strict=True)]
        return [("risk", f"{risk(scores.double()):.4f}"), *survived]

    def labelled(self, split: str, problems: Problems) -> tuple[Sequence[Path], Tensor, Sequence[int]]:
        """Images; time, event (1 or 0) and bin of each as targets, in float64; bins, seen and censored, as groups."""
        table = self._table(split, problems)
        bins = bins_of(table.times, self._edges)
        targets = torch.stack([table.times, table.events.double(), bins.double()], 1)
        return table.images, targets, (2 * bins + table.events).tolist()

    @property
    def _edges(self) -> list[float]:
        edges: list[float] = self.state.state_dict["time edges"]
        return edges

    def _table(self, split: str, problems: Problems) -> Survival:
        """The times and events of a split."""
        raise NotImplementedError


class SurvivalTask(TimeBins, ImageTask):
    """Survival of images, from a table in each split's folder."""

    def _table(self, split: str, problems: Problems) -> Survival:
        return read_survival(Path(self.cfg.data) / split / self.cfg.labels, problems)
