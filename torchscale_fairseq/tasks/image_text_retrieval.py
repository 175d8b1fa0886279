"""``--task image_text_retrieval``: find the image of a text, and the text of an image."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from fairseq.criterions import FairseqCriterion
from fairseq.tasks import FairseqTask, register_task
from torch import Tensor

from torchscale_fairseq.core.ops.recall import ranks
from torchscale_fairseq.data.images.index import Format, Line

from ._joint import JointConfig, JointTask, Record


@register_task("image_text_retrieval", dataclass=JointConfig)
class ImageTextRetrievalTask(JointTask):
    """Lines that name one image have texts of one image."""

    format = Format(text=("text_segment", "caption"), example='{"image": "images/1.png", "caption": "a red circle"}')

    def targets(self, lines: Sequence[Line]) -> Tensor:
        """The number of each line's image."""
        numbers: dict[Any, int] = {}
        return torch.tensor([numbers.setdefault(line.images[0], len(numbers)) for line in lines])

    def predict_all(self, models: list[Any], batches: Iterable[tuple[dict[str, Any], list[Line]]]) -> list[Record]:
        """The ranks of each line's image among all images, and of its text among all texts; 0 is the best.

        Embeddings lie in files, so that neither they nor their products need be in memory at once.
        """
        numbers: dict[Any, int] = {}
        owners, lines = [], []
        with TemporaryDirectory() as folder, _Table(folder, "images") as images, _Table(folder, "texts") as texts:
            for sample, part in batches:
                given = sample["net_input"]
                new = [place for place, line in enumerate(part) if _is_new(line, numbers)]
                if new:
                    images.add(models[0].embed_images(given["images"][new]))
                texts.add(models[0].embed_texts(given["tokens"]))
                owners += [numbers[line.images[0]] for line in part]
                lines += part
            image_of_text, every = torch.tensor(owners), torch.arange(len(numbers))
            of_images = ranks(texts.read(), images.read(), image_of_text, every)
            of_texts = ranks(images.read(), texts.read(), every, image_of_text)
        return [
            {
                "image": str(line.images[0]),
                "text": line.text,
                "image_rank": int(rank),
                "text_rank": int(of_texts[owner]),
            }
            for line, rank, owner in zip(lines, of_images, owners, strict=True)
        ]

    def figures(self, records: Sequence[Record], lines: Sequence[Line]) -> dict[str, float]:
        """Recall at 1, 5 and 10 in both directions."""
        of_texts = {record["image"]: record["text_rank"] for record in records}
        found = {"text_to_image": [r["image_rank"] for r in records], "image_to_text": list(of_texts.values())}
        return {
            f"{name}_r{k}": 100.0 * sum(rank < k for rank in places) / len(places)
            for name, places in found.items()
            for k in (1, 5, 10)
        }

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> FairseqCriterion:
        """Build the contrastive criterion."""
        criterion: FairseqCriterion = FairseqTask.build_criterion(self, cfg, from_checkpoint)
        return criterion

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, ignore_grad: bool = False
    ) -> Any:
        """Train on a batch. A process that has run out of batches takes part with no pair, not with a stale batch."""
        return super().train_step(
            {**sample, "counts": not ignore_grad}, model, criterion, optimizer, update_num, ignore_grad
        )


def _is_new(line: Line, numbers: dict[Any, int]) -> bool:
    """Whether a line's image has no number yet; it gets one."""
    before = len(numbers)
    return numbers.setdefault(line.images[0], before) == before


class _Table:
    """Vectors in a file, appended and then mapped.

    Args:
        folder, name: of the file.
    """

    def __init__(self, folder: str, name: str):
        self.file = (Path(folder) / name).open("w+b")
        self.width = 0

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, rows: Tensor) -> None:
        """Append (rows, width)."""
        self.width = rows.size(1)
        self.file.write(rows.float().cpu().numpy().tobytes())

    def read(self) -> Any:
        """All rows, (rows, width), mapped from the file."""
        self.file.flush()
        return np.memmap(self.file, np.float32, "c").reshape(-1, self.width)
