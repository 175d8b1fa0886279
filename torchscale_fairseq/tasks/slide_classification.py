"""``--task slide_classification``: classes, labels or survival of whole slides."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.tasks import register_task
from torch import Tensor

from torchscale_fairseq.data.images.labels import listed
from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.data.survival import Survival, parse_event, parse_time

from ._labelled import ClassReading
from ._slides import TIMES, SlideConfig, SlideTask, columns_of
from ._survival import TimeBins

logger = logging.getLogger(__name__)


@register_task("slide_classification", dataclass=SlideConfig)
class SlideClassificationTask(ClassReading, SlideTask):
    """One class per slide: those of the column in the training split. A checkpoint remembers them."""

    predicts = "classes"

    @classmethod
    def setup_task(cls, cfg: SlideConfig, from_checkpoint: bool = False, **_: Any) -> SlideTask:
        """Make the task that fits --label-columns."""
        columns = columns_of(cfg)
        kind: Any = SlideSurvivalTask if columns == TIMES else SlideLabelsTask if len(columns) > 1 else cls
        task: SlideTask = super(SlideClassificationTask, kind).setup_task(cfg, from_checkpoint)
        return task

    def learned(self) -> dict[str, list[Any]]:
        """The classes, in the order of the model's scores: by number if they are numbers, else by name."""
        rows = self.rows(self.cfg.train_subset, Problems(skip=self.cfg.skip_invalid))
        classes = sorted({value for (value,) in rows.values}, key=_natural)
        if len(classes) < 2:
            raise DataError(
                f"{rows.path} has one class in the column {self.columns[0]} of the split {self.cfg.train_subset}, "
                f"{classes[0]}; a model needs at least two."
            )
        logger.info("%s slides, %s", len(rows.files), listed(classes))
        return {"classes": classes}

    def labelled(self, split: str, problems: Problems) -> tuple[Sequence[Path], Tensor, Sequence[int]]:
        """Slides, and their classes as targets and groups."""
        rows, classes = self.rows(split, problems), self.state.classes
        files, labels = [], []
        for file, where, (value,) in zip(rows.files, rows.lines, rows.values, strict=True):
            with problems.kind("invalid rows"):
                if value not in classes:
                    raise DataError(
                        f"{where} has the class {value}, which the training lacks; its classes are "
                        f"{', '.join(classes)}."
                    )
                files.append(file)
                labels.append(classes.index(value))
        return files, torch.tensor(labels), labels


def _natural(value: str) -> tuple[bool, int, str]:
    return (False, int(value), value) if value.isdecimal() else (True, 0, value)


class SlideLabelsTask(SlideClassificationTask):
    """Several labels per slide, each of which it has or lacks."""

    predicts = "labels"

    def learned(self) -> dict[str, list[Any]]:
        """The names of the labels, which are those of the columns."""
        return {"labels": self.columns}

    @property
    def num_classes(self) -> int:
        """Labels."""
        return len(self.state.labels)

    def reading(self, scores: Tensor) -> list[tuple[str, str]]:
        """The probability of each label."""
        shown = [f"{p:.4f}" for p in scores.double().sigmoid().tolist()]
        return list(zip(self.state.labels, shown, strict=True))

    def labelled(self, split: str, problems: Problems) -> tuple[Sequence[Path], Tensor, Sequence[int]]:
        """Slides; 0 or 1 for each label as targets; combinations of labels as groups."""
        rows = self.rows(split, problems)
        files, found = [], []
        for file, where, values in zip(rows.files, rows.lines, rows.values, strict=True):
            with problems.kind("invalid rows"):
                wrong = [value for value in values if value not in ("0", "1")]
                if wrong:
                    raise DataError(f"{where} has the label {wrong[0]}; it should be 1 or 0.")
                files.append(file)
                found.append([float(value) for value in values])
        combinations = sorted({tuple(labels) for labels in found})
        return files, torch.tensor(found), [combinations.index(tuple(labels)) for labels in found]


class SlideSurvivalTask(TimeBins, SlideClassificationTask):
    """Survival: bins of time, after the training's events."""

    examples = "slides"

    def _table(self, split: str, problems: Problems) -> Survival:
        rows = self.rows(split, problems)
        files, times, events = [], [], []
        for file, where, (time, event) in zip(rows.files, rows.lines, rows.values, strict=True):
            with problems.kind("invalid rows"):
                pair = parse_time(time, where), parse_event(event, where)
                files.append(file)
                times.append(pair[0])
                events.append(pair[1])
        if not any(events):
            raise DataError(f"{rows.path} has no event in the split {split}: all its {len(files)} slides are censored.")
        return Survival(rows.path, files, torch.tensor(times, dtype=torch.float64), torch.tensor(events))
