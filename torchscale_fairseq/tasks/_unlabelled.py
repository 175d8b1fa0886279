"""The base of tasks that read images without labels."""

from pathlib import Path
from typing import Any

from torchscale_fairseq.data.images.folders import read_unlabelled
from torchscale_fairseq.data.images.index import Format, read_index
from torchscale_fairseq.data.problems import Problems

from ._images import ReadingConfig, check_size, check_task
from ._pretrained import StartsFromWeights

FORMAT = Format(text=(), example='{"image_path": "images/1.png"}')


class UnlabelledTask(StartsFromWeights):
    """Finds the images of a split.

    Args:
        cfg: the options.
    """

    cfg: ReadingConfig

    @classmethod
    def setup_task(cls, cfg: Any, **_: Any) -> Any:
        """Make the task."""
        return cls(cfg)

    def adapt_checkpoint(self, state: dict[str, Any], *, fine_tuning: bool, keep_optimizer: bool) -> None:
        """Check a checkpoint before a run resumes from it.

        Raises:
            InputError: see ``check_task`` and ``check_size``.
        """
        check_task(state, self.cfg)
        if keep_optimizer:
            check_size(state, self.cfg.img_size)

    def index(self, split: str) -> Path:
        """The file that may list a split's images."""
        return Path(self.cfg.data) / f"{split}.jsonl"

    def images(self, split: str, problems: Problems) -> list[Path]:
        """The images that the index of a split lists, or else those in its folder, at any depth.

        Raises:
            DataError: there are none.
        """
        index = self.index(split)
        if index.exists():
            return [line.images[0] for line in read_index(index, FORMAT, problems)]
        return read_unlabelled(index.with_suffix(""))

    def max_positions(self) -> None:
        """There is no limit."""

    @property
    def source_dictionary(self) -> None:
        """There are no words."""

    @property
    def target_dictionary(self) -> None:
        """There are no words."""
