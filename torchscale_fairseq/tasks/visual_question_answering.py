"""``--task visual_question_answering``: questions about images, with answers of a fixed set."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq.tasks import register_task

from torchscale_fairseq.data.images.answers import ANSWERS, AnswerScores, answers_of, read_answers, scores_of
from torchscale_fairseq.data.images.index import Format, Line
from torchscale_fairseq.data.problems import DataError, Problems

from ._joint import JointConfig, JointTask, Record

logger = logging.getLogger(__name__)


@register_task("visual_question_answering", dataclass=JointConfig)
class VisualQuestionAnsweringTask(JointTask):
    """The answers are those of DATA/answer2label.txt, or else of the training split. A checkpoint remembers them."""

    format = Format(
        text=("text_segment", "question"),
        example='{"image": "images/1.png", "question": "what colour is it?", "answer": "red", "qid": 1}',
    )
    criterions = "--task visual_question_answering needs --criterion visual_question_answering"

    def learned(self) -> dict[str, list[Any]]:
        """The answers, in the order of the model's scores."""
        file = Path(self.cfg.data) / ANSWERS
        if file.exists():
            return {"answers": read_answers(file)}
        answers = answers_of(self.index(self.cfg.train_subset, Problems(skip=self.cfg.skip_invalid)))
        logger.info("%s answers in %s", len(answers), self.cfg.train_subset)
        return {"answers": answers}

    @property
    def num_classes(self) -> int:
        """Answers."""
        return len(self.state.answers)

    def targets(self, lines: Sequence[Line]) -> AnswerScores | None:
        """The score of each answer, or None for questions without answers, as of a test split."""
        if not any(line.content.get(name) for line in lines for name in ("labels", "answer", "answers")):
            return None
        numbers = {answer: number for number, answer in enumerate(self.state.answers)}
        return AnswerScores([scores_of(line, numbers) for line in lines], self.num_classes)

    def predict(self, models: list[Any], sample: dict[str, Any], lines: Sequence[Line]) -> list[Record]:
        """The likeliest answer of each question, as VQA's evaluation server reads it."""
        best = models[0](**sample["net_input"]).argmax(-1).tolist()
        return [
            {"question_id": _question(line), "answer": self.state.answers[answer]}
            for line, answer in zip(lines, best, strict=True)
        ]

    def figures(self, records: Sequence[Record], lines: Sequence[Line]) -> dict[str, float]:
        """The mean score of the answers."""
        targets, numbers = self.targets(lines), {answer: number for number, answer in enumerate(self.state.answers)}
        if targets is None:
            return {}
        found = [scores.get(numbers[r["answer"]], 0.0) for scores, r in zip(targets.scores, records, strict=True)]
        return {"vqa_score": 100.0 * sum(found) / len(found)}


def _question(line: Line) -> Any:
    for name in ("qid", "question_id"):
        if name in line.content:
            return line.content[name]
    raise DataError(f"{line.where} has no qid, under which an answer is written.")
