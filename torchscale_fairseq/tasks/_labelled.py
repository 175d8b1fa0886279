"""The base of tasks that predict something about each image or slide."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.criterions._images import ImageCriterion
from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.tasks._pretrained import StartsFromWeights

HEAD = "head."


class LabelledTask(StartsFromWeights):
    """Learns from the training split what a model's scores mean, and remembers it in checkpoints.

    Args:
        cfg: the options.
    """

    cfg: Any
    criterions = ""
    """Which criterions there are, as the end of a sentence."""

    @classmethod
    def setup_task(cls, cfg: Any, from_checkpoint: bool = False, **_: Any) -> Any:
        """Make the task; the meaning of scores comes from the training split, or later from a checkpoint.

        Raises:
            DataError: something is wrong with the training split.
        """
        task = cls(cfg)
        if not from_checkpoint:
            task.state.merge_state_dict(task.learned())
        return task

    def learned(self) -> dict[str, list[Any]]:
        """The meaning of a model's scores, under a name in the plural; a checkpoint remembers it.

        Raises:
            DataError: something is wrong with the training split.
        """
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Scores that a model gives an example."""
        raise NotImplementedError

    def reading(self, scores: Tensor) -> list[tuple[str, str]]:
        """The scores of an example, (scores,), in words: columns of a table, and their cells."""
        raise NotImplementedError

    def labelled(self, split: str, problems: Problems) -> tuple[Sequence[Any], Tensor, Sequence[int]]:
        """The files of a split, their targets (files, ...), and the group of each for --class-balanced.

        Args:
            split: such as "train".
            problems: takes the problems of single files.

        Raises:
            DataError: something is wrong with the data.
        """
        raise NotImplementedError

    def check_resumed(self, state: dict[str, Any]) -> None:
        """Refuse a checkpoint whose optimizer cannot resume."""

    def adapt_checkpoint(self, state: dict[str, Any], *, fine_tuning: bool, keep_optimizer: bool) -> None:
        """Look at a checkpoint before a run resumes from it. A run that begins from one whose scores mean something
        else (fine_tuning) gets a new head.

        Raises:
            DataError: a run cannot resume, as its scores mean something else.
            InputError: see ``check_resumed``.
        """
        if keep_optimizer:
            self.check_resumed(state)
        before, now = state.get("task_state"), self.state.state_dict
        if not before or before == now:
            return
        if not fine_tuning:
            (old, olds), (new, news) = next(iter(before.items())), next(iter(now.items()))
            raise DataError(
                f"the checkpoint's {old} are {', '.join(map(str, olds))}, and the {new} of "
                f"{Path(self.cfg.data) / self.cfg.train_subset} {', '.join(map(str, news))}; give another --save-dir, "
                "and the checkpoint as --finetune-from-model."
            )
        for name in [name for name in state["model"] if name.startswith(HEAD)]:
            del state["model"][name]

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build a criterion.

        Raises:
            InputError: it is one for words, as is fairseq's default, which would take each patch for one.
        """
        criterion = super().build_criterion(cfg, from_checkpoint)
        if not isinstance(criterion, ImageCriterion):
            raise InputError(
                f"--criterion {cfg._name} is not for {'slides' if 'slide' in self.cfg._name else 'images'}; "
                f"{self.criterions}."
            )
        return criterion

    def max_positions(self) -> None:
        """There is no limit."""

    @property
    def source_dictionary(self) -> None:
        """There are no words."""

    @property
    def target_dictionary(self) -> None:
        """There are no words."""


class ClassReading:
    """A mixin of tasks whose scores are those of classes, one of which an example has."""

    state: Any

    @property
    def num_classes(self) -> int:
        """Scores that a model gives an example."""
        return len(self.state.classes)

    def reading(self, scores: Tensor) -> list[tuple[str, str]]:
        """The likeliest class, and the probability of each."""
        shown = [f"{p:.4f}" for p in scores.double().softmax(-1).tolist()]
        return [("class", self.state.classes[int(scores.argmax())]), *zip(self.state.classes, shown, strict=True)]
