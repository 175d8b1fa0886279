"""Slides with something to predict of each, as bags of tiles."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from torchscale_fairseq.data.drawn_order import DrawnOrder
from torchscale_fairseq.data.slides.files import Bag, read_bag


class SlideDataset(DrawnOrder):
    """Bags of tiles and targets. An index is a place in the order of an epoch, in which slides are shuffled or drawn.

    Args:
        files: one per slide.
        sizes: tiles of each slide.
        targets: (slides, ...), what the criterion compares scores with.
        training: draw the order, and the tiles of slides with more than ``max_tiles``.
        max_tiles: tiles of a slide that are drawn in training, without replacement; 0: all.
        shuffle_tiles: in training, put the tiles in random order; otherwise they keep that of the file.
        groups, seed: as for ``DrawnOrder``.
    """

    def __init__(
        self,
        files: Sequence[Path],
        sizes: Sequence[int],
        targets: Tensor,
        *,
        training: bool,
        max_tiles: int,
        shuffle_tiles: bool,
        groups: Sequence[int] | None,
        seed: int,
    ):
        self.files = files
        self.targets = targets
        self.max_tiles = max_tiles if training else 0
        self.shuffle_tiles = shuffle_tiles and training
        self.largest = min(max(sizes), self.max_tiles or max(sizes))
        super().__init__(len(files), shuffle=training, groups=groups, seed=seed)

    def __getitem__(self, index: int) -> dict[str, Any]:
        slide = int(self.order[index])
        bag = self._drawn_tiles(read_bag(self.files[slide]), self.generator(index))
        return {"id": slide, "bag": bag, "target": self.targets[slide]}

    def _drawn_tiles(self, bag: Bag, rng: np.random.Generator) -> Bag:
        count = len(bag.features)
        keep = min(count, self.max_tiles or count)
        if keep == count and not self.shuffle_tiles:
            return bag
        chosen = rng.permutation(count)[:keep]
        rows = torch.from_numpy(chosen if self.shuffle_tiles else np.sort(chosen))
        return Bag(bag.features[rows], bag.coords[rows])

    def collater(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch: ``features``, ``coords`` and, where slides differ in length, ``padding_mask`` for the model; and
        targets."""
        if not examples:
            return {}
        inputs = batch_of([example["bag"] for example in examples])
        return {
            "id": torch.tensor([example["id"] for example in examples]),
            "nsentences": len(examples),
            "ntokens": sum(len(example["bag"].features) for example in examples),
            "net_input": inputs,
            "target": torch.stack([example["target"] for example in examples]),
        }

    def num_tokens(self, index: int) -> int:
        """The most tiles of any slide, since another one has this index in each epoch."""
        return self.largest

    def size(self, index: int) -> int:
        """Size of a slide, equal to ``num_tokens``."""
        return self.largest


def batch_of(bags: Sequence[Bag]) -> dict[str, Tensor | None]:
    """The model's arguments for slides of any length, padded to the longest."""
    lengths = torch.tensor([len(bag.features) for bag in bags])
    longest = int(lengths.max())
    return {
        "features": pad_sequence([bag.features for bag in bags], batch_first=True),
        "coords": pad_sequence([bag.coords for bag in bags], batch_first=True),
        "padding_mask": None if bool((lengths == longest).all()) else torch.arange(longest) >= lengths[:, None],
    }
