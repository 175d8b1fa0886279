"""The base of tasks on slides."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq.dataclass import FairseqDataclass
from omegaconf import II, MISSING
from torch import Tensor
from torch.distributed import ProcessGroup

from torchscale_fairseq.core.errors import InputError
from torchscale_fairseq.core.ops.survival import risk
from torchscale_fairseq.data.problems import DataError, Problems
from torchscale_fairseq.data.slides.dataset import SlideDataset, batch_of
from torchscale_fairseq.data.slides.files import FORMATS, read_bag, read_size
from torchscale_fairseq.data.slides.slices import SlicesOfSlides
from torchscale_fairseq.data.slides.table import SlideRows, read_slides

from ._labelled import LabelledTask

TIMES = ["time", "event"]


@dataclass
class SlideConfig(FairseqDataclass):
    """Options of tasks on slides."""

    data: str = field(
        default=MISSING, metadata={"help": "folder with --table and one file of features and coords per slide"}
    )
    table: str = field(
        default="slides.csv", metadata={"help": "CSV file in DATA with the columns slide, split and --label-columns"}
    )
    label_columns: str = field(
        default="label",
        metadata={
            "help": (
                "columns to predict: one column of classes; several columns, separated by commas, each 1 for "
                "slides with that label and 0 for the others; or time,event, where event is 1 if it was "
                "observed at that time and 0 if not until then (censored)"
            )
        },
    )
    time_bins: int = field(
        default=4,
        metadata={"help": "number of time bins for time,event, cut at quantiles of the training set's event times"},
    )
    max_tiles: int = field(
        default=0, metadata={"help": "number of tiles that are drawn from each training slide per epoch; 0: all"}
    )
    shuffle_tiles: bool = field(
        default=False, metadata={"help": "put the tiles of training slides in random order instead of the file's"}
    )
    class_balanced: bool = field(
        default=False,
        metadata={
            "help": (
                "draw all classes equally often in training (combinations of labels; time bins, observed and "
                "censored apart); the number of slides per epoch does not change"
            )
        },
    )
    skip_invalid: bool = field(
        default=False,
        metadata={"help": "report, count and skip invalid slides and rows, instead of ending with an error"},
    )
    seed: int = II("common.seed")
    train_subset: str = II("dataset.train_subset")


class SlideTask(LabelledTask):
    """Reads slides and makes batches; subclasses say what is predicted of a slide.

    Args:
        cfg: the options.

    Raises:
        InputError: an option is out of its range.
    """

    cfg: SlideConfig
    criterions = "give --criterion slide_classification, multi_label (several --label-columns) or survival (time,event)"

    def __init__(self, cfg: SlideConfig):
        super().__init__(cfg)
        if cfg.max_tiles < 0:
            raise InputError(f"--max-tiles ({cfg.max_tiles}) must be at least 1, or 0 for all.")
        if cfg.time_bins < 2:
            raise InputError(f"--time-bins ({cfg.time_bins}) must be at least 2.")

    @property
    def columns(self) -> list[str]:
        """The columns of the table to predict."""
        return columns_of(self.cfg)

    def rows(self, split: str, problems: Problems) -> SlideRows:
        """The slides of a split.

        Raises:
            DataError: something is wrong with the table.
        """
        return read_slides(Path(self.cfg.data) / self.cfg.table, split, self.columns, problems)

    def load_dataset(self, split: str, **_: Any) -> None:
        """Open a split.

        Raises:
            DataError: something is wrong with the data.
        """
        cfg, problems = self.cfg, Problems(skip=self.cfg.skip_invalid)
        files, targets, groups = self.labelled(split, problems)
        sizes = _sizes(files, problems)
        kept = [place for place, size in enumerate(sizes) if size is not None]
        if not kept:
            raise DataError(f"none of the {len(files)} slides of the split {split} can be read.")
        problems.report(split)
        training = split == cfg.train_subset
        self.datasets[split] = SlideDataset(
            [files[place] for place in kept],
            [int(sizes[place] or 0) for place in kept],
            targets[kept],
            training=training,
            max_tiles=cfg.max_tiles,
            shuffle_tiles=cfg.shuffle_tiles,
            groups=[groups[place] for place in kept] if training and cfg.class_balanced else None,
            seed=cfg.seed,
        )

    def sequence_cut(self, group: ProcessGroup) -> SlicesOfSlides:
        """How the processes of a group share batches (--seq-parallel)."""
        return SlicesOfSlides(group)

    def reads(self, path: Path) -> bool:
        """Whether a path in a folder may be a slide."""
        return path.suffix in FORMATS and not any(parent.suffix == ".zarr" for parent in path.parents)

    def explained(self, scores: Tensor) -> Tensor:
        """The number that attributions are of: the largest score, or the risk."""
        return risk(scores) if self.columns == TIMES else scores.max()

    def model_input(self, path: Path) -> dict[str, Any]:
        """The model's arguments for one slide.

        Raises:
            DataError: the file cannot be used.
        """
        return batch_of([read_bag(path)])


def columns_of(cfg: SlideConfig) -> list[str]:
    """The names in --label-columns.

    Raises:
        InputError: there is none, or one twice.
    """
    names = [name.strip() for name in cfg.label_columns.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"--label-columns ({cfg.label_columns!r}) must name columns of {cfg.table}, each once, separated by commas."
        )
    return names


def _sizes(files: Sequence[Path], problems: Problems) -> list[int | None]:
    """Tiles of each slide; None for one that cannot be used."""
    sizes: list[int | None] = []
    width: tuple[int, Path] | None = None
    for file in files:
        sizes.append(None)
        with problems.kind("invalid slides"):
            tiles, values = read_size(file)
            width = width or (values, file)
            if values != width[0]:
                raise DataError(f"{file} has features of {values} values, and {width[1]} of {width[0]}.")
            sizes[-1] = tiles
    return sizes
