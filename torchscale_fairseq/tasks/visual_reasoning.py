"""``--task visual_reasoning``: whether a sentence is true of two images (NLVR2, arXiv:1811.00491)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq.tasks import register_task
from torch import Tensor

from torchscale_fairseq.core.files import write_atomically
from torchscale_fairseq.data.images.index import Format, Line

from ._joint import JointConfig, JointTask, Record, labels_of

CLASSES = ("False", "True")


@register_task("visual_reasoning", dataclass=JointConfig)
class VisualReasoningTask(JointTask):
    """The classes are False and True, in the order of the released labels 0 and 1."""

    format = Format(
        text=("text_segment", "sentence"),
        example='{"image": "1a.png", "image2": "1b.png", "sentence": "both are red", "label": "True"}',
        two_images=True,
    )
    criterions = "--task visual_reasoning needs --criterion image_classification"

    @property
    def num_classes(self) -> int:
        """Two."""
        return len(CLASSES)

    def targets(self, lines: Sequence[Line]) -> Tensor | None:
        """The number of each line's label."""
        return labels_of(lines, CLASSES)

    def predict(self, models: list[Any], sample: dict[str, Any], lines: Sequence[Line]) -> list[Record]:
        """Whether each sentence is true."""
        best = models[0](**sample["net_input"]).argmax(-1).tolist()
        return [
            {"identifier": str(line.content.get("identifier", line.where)), "prediction": CLASSES[label]}
            for line, label in zip(lines, best, strict=True)
        ]

    def figures(self, records: Sequence[Record], lines: Sequence[Line]) -> dict[str, float]:
        """The share of right predictions."""
        targets = self.targets(lines)
        if targets is None:
            return {}
        right = [CLASSES[label] == r["prediction"] for label, r in zip(targets.tolist(), records, strict=True)]
        return {"accuracy": 100.0 * sum(right) / len(right)}

    def write(self, records: list[Record], path: Path) -> None:
        """Write lines IDENTIFIER,PREDICTION, which NLVR2's evaluation reads."""
        with write_atomically(path) as scratch:
            scratch.write_text("".join(f"{r['identifier']},{r['prediction']}\n" for r in records), encoding="utf-8")
