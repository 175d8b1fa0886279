"""The base of tasks that fine-tune BEiT-3 on images with texts."""

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.dataclass import FairseqDataclass
from numpy.typing import NDArray
from omegaconf import II, MISSING
from torch import Tensor

from torchscale_fairseq.core.files import write_atomically
from torchscale_fairseq.data.images.check import readable_images
from torchscale_fairseq.data.images.index import Format, Line, read_index
from torchscale_fairseq.data.images.joint_dataset import ImagesWithText
from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.data.text.pieces import TextEncoder
from torchscale_fairseq.data.text.words import load_text_encoder, load_words
from torchscale_fairseq.tasks._dictionary import OneDictionary

from ._images import SKIP_INVALID, check_size, check_whole_patches
from ._labelled import LabelledTask

Record = dict[str, Any]
"""The prediction for a line, as it is written."""


@dataclass
class JointConfig(FairseqDataclass):
    """Options of tasks that read images with texts."""

    data: str = field(
        default=MISSING,
        metadata={
            "help": "directory with an index SPLIT.jsonl for each split, and sentencepiece.bpe.model (or beit3.spm) "
            "with its dict.txt; without dict.txt, pieces are numbered as XLM-R numbers them"
        },
    )
    img_size: int = field(default=224, metadata={"help": "scale images to squares of this many pixels a side"})
    patch_size: int = field(default=16, metadata={"help": "height and width of a patch in pixels"})
    max_source_positions: int = field(default=64, metadata={"help": "maximum length of a text in tokens"})
    skip_invalid: bool = field(default=False, metadata={"help": SKIP_INVALID})
    seed: int = II("common.seed")
    train_subset: str = II("dataset.train_subset")


class JointTask(OneDictionary, LabelledTask):
    """Reads an index per split and makes batches of images and tokens; a subclass says what is predicted.

    Args:
        cfg: the options.

    Raises:
        DataError: the dictionary is missing or broken.
        InputError: an option is out of its range.
    """

    cfg: JointConfig
    format: Format
    predicts = "classes"

    def __init__(self, cfg: JointConfig):
        super().__init__(cfg)
        check_whole_patches("--img-size", cfg.img_size, cfg.patch_size)
        self.dictionary = load_words(Path(cfg.data))

    def learned(self) -> dict[str, list[Any]]:
        """Nothing, by default."""
        return {}

    def check_resumed(self, state: dict[str, Any]) -> None:
        """Refuse a checkpoint of another --img-size.

        Raises:
            InputError: see ``check_size``.
        """
        check_size(state, self.cfg.img_size)

    def index(self, split: str, problems: Problems) -> list[Line]:
        """The lines of a split.

        Raises:
            DataError: the index is missing, or a line of it is invalid.
        """
        return read_index(Path(self.cfg.data) / f"{split}.jsonl", self.format, problems)

    def load_dataset(self, split: str, **_: Any) -> None:
        """Open a split.

        Args:
            split: such as "train", for train.jsonl.

        Raises:
            DataError: something is wrong with the data.
        """
        problems = Problems(skip=self.cfg.skip_invalid)
        lines = self.index(split, problems)
        data, sides = Path(self.cfg.data), range(2 if self.format.two_images else 1)
        for side in sides:
            kept = readable_images([line.images[side] for line in lines], self.cfg.img_size, data, split, problems)
            lines = [lines[place] for place in kept]
        self.datasets[split] = self.dataset_of(lines, problems, training=split == self.cfg.train_subset)
        problems.report(split)

    def dataset_of(self, lines: list[Line], problems: Problems, *, training: bool = False) -> ImagesWithText:
        """Lines of an index as a dataset.

        Raises:
            DataError: a text is too long, or a target is missing.
        """
        lines, tokens = self._tokens(lines, problems)
        return ImagesWithText(lines, tokens, self.targets(lines), **self.dataset_options(training))

    def dataset_options(self, training: bool) -> dict[str, Any]:
        """Arguments of ``ImagesWithText`` that come from the options."""
        cfg = self.cfg
        return {
            "dictionary": self.dictionary,
            "img_size": cfg.img_size,
            "patches": (cfg.img_size // cfg.patch_size) ** 2,
            "shuffle": training,
            "seed": cfg.seed,
        }

    def targets(self, lines: Sequence[Line]) -> Any:
        """The target of each line, or None where lines have none."""
        return None

    def predict(self, models: list[Any], sample: dict[str, Any], lines: Sequence[Line]) -> list[Record]:
        """The predictions for a batch.

        Args:
            models: one, or several where the task averages them.
            sample: a batch.
            lines: of the index, one for each example of the batch.
        """
        raise NotImplementedError

    def predict_all(self, models: list[Any], batches: Iterable[tuple[dict[str, Any], list[Line]]]) -> list[Record]:
        """``predict`` for each batch and its lines."""
        return [record for sample, lines in batches for record in self.predict(models, sample, lines)]

    def figures(self, records: Sequence[Record], lines: Sequence[Line]) -> dict[str, float]:
        """How good predictions are, in percent unless the name says otherwise; empty where lines do not say it."""
        return {}

    def write(self, records: list[Record], path: Path) -> None:
        """Write predictions as one JSON list, which the official evaluations read."""
        with write_atomically(path) as scratch:
            scratch.write_text(json.dumps(records, ensure_ascii=False) + "\n", encoding="utf-8")

    def text_encoder(self, problems: Problems | None = None) -> TextEncoder:
        """The encoder of texts into tokens.

        Raises:
            DataError: the tokenizer is missing, or does not fit the dictionary.
        """
        return load_text_encoder(Path(self.cfg.data), self.dictionary, problems or Problems(skip=False))

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """``text_encoder``, made once."""
        return self.text_encoder()

    def _tokens(self, lines: list[Line], problems: Problems) -> tuple[list[Line], list[NDArray[np.int64]]]:
        """The lines whose texts are short enough, and their tokens."""
        encoder = self.text_encoder(problems)
        found = [self._numbers(line, encoder) for line in lines]
        most = self.cfg.max_source_positions - 2
        long = [line for line, tokens in zip(lines, found, strict=True) if len(tokens) > most]
        if long:
            problems.found(
                "texts that are too long",
                f"{long[0].where} has a text of more than --max-source-positions ({most + 2}) tokens, <s> and </s> "
                "included; shorten the text, or train a new model with room for more",
                len(long),
            )
        kept = [place for place, tokens in enumerate(found) if len(tokens) <= most]
        return [lines[place] for place in kept], [found[place] for place in kept]

    def _numbers(self, line: Line, encoder: TextEncoder) -> NDArray[np.int64]:
        if not isinstance(line.text, list):
            return encoder([(line.text or "").encode()])[0]
        if max(line.text, default=0) >= len(self.dictionary) or min(line.text, default=0) < 0:
            raise DataError(
                f"{line.where} has the token {max(line.text)}, and the dictionary {len(self.dictionary)} entries; put "
                f"the SentencePiece model that made the index into {self.cfg.data}, without dict.txt."
            )
        return np.array(line.text, dtype=np.int64)


def labels_of(lines: Sequence[Line], classes: Sequence[str]) -> Tensor | None:
    """The class of each line's ``label``, (lines,), or None if no line has one.

    Args:
        lines: whose label is the number of a class, or its name in any case.
        classes: names.

    Raises:
        DataError: a label is no class, or some lines have one and others do not.
    """
    if not any("label" in line.content for line in lines):
        return None
    names = {name.lower(): number for number, name in enumerate(classes)}
    labels = []
    for line in lines:
        label = line.content.get("label")
        number = names.get(str(label).lower(), label)
        if not isinstance(number, int) or not 0 <= number < len(classes):
            raise DataError(f"{line.where} has the label {label}; labels are {', '.join(classes)}, or their numbers.")
        labels.append(int(number))
    return torch.tensor(labels)
