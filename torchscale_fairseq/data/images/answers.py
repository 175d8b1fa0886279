"""Answers to questions about images: a fixed set, and the score of each answer to a question."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from torchscale_fairseq.data.images.index import Line
from torchscale_fairseq.data.problems import DataError

ANSWERS = "answer2label.txt"
"""The released name of the file with the set."""

Scores = Mapping[int, float]
"""Scores above 0, by the index of the answer."""


class AnswerScores:
    """The targets of questions, as vectors that are made when they are read.

    Args:
        scores: of each question.
        answers: size of the set.
    """

    def __init__(self, scores: Sequence[Scores], answers: int):
        self.scores, self.answers = scores, answers

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, place: int) -> Tensor:
        target = torch.zeros(self.answers)
        for answer, score in self.scores[place].items():
            target[answer] = score
        return target


def read_answers(path: Path) -> list[str]:
    """The set of a file with lines such as {"answer": "yes", "label": 0}, in the order of the labels.

    Raises:
        DataError: a line is not such an object, or labels do not count from 0.
    """
    answers: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            content = json.loads(line)
            answer, label = content["answer"], int(content["label"])
        except (ValueError, KeyError, TypeError):
            label = -1
        if label != number:
            raise DataError(f'{path}, line {number + 1} should be such as {{"answer": "yes", "label": {number}}}.')
        answers.append(answer)
    return answers


def answers_of(lines: Sequence[Line]) -> list[str]:
    """All answers with a score above 0, sorted.

    Raises:
        DataError: a line has no answer, or there are fewer than two answers.
    """
    answers = sorted({answer for line in lines for answer, score in _by_text(line).items() if score > 0})
    if len(answers) < 2:
        raise DataError(f"the questions have {len(answers)} different answers; a model needs at least two to learn.")
    return answers


def scores_of(line: Line, answers: Mapping[str, int]) -> Scores:
    """The scores of a line's answers; those outside the set are left out.

    Args:
        line: with ``labels`` and ``scores`` (indices of answers and their scores), with ``answers`` (an object of
            scores), or with ``answer``.
        answers: the set, with the index of each.

    Raises:
        DataError: the line has no answer, or a label is outside the set.
    """
    if "labels" not in line.content:
        return {answers[answer]: score for answer, score in _by_text(line).items() if answer in answers}
    labels, scores = line.content["labels"], line.content.get("scores")
    if not isinstance(labels, list) or not isinstance(scores, list) or len(labels) != len(scores):
        raise DataError(f"{line.where} must have as many scores as labels.")
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < len(answers):
            raise DataError(f"{line.where} has the label {label}, and {ANSWERS} has {len(answers)} answers.")
    return dict(zip(labels, map(float, scores), strict=True))


def _by_text(line: Line) -> dict[str, float]:
    content = line.content
    if isinstance(content.get("answers"), dict):
        return {str(answer): float(score) for answer, score in content["answers"].items()}
    if isinstance(content.get("answer"), str):
        return {content["answer"]: 1.0}
    raise DataError(f"{line.where} has neither labels and scores, nor an answer, nor answers with scores.")
