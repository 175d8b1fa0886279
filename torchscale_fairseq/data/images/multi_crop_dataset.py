"""Images as several random crops each, without labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from torchscale_fairseq.data.drawn_order import DrawnOrder
from torchscale_fairseq.data.images.crops import CropKind
from torchscale_fairseq.data.images.reading import load_pixels

Example = dict[str, Any]


class MultiCropDataset(DrawnOrder):
    """Global and local crops of images (multi-crop, arXiv:2006.09882, sec. 3.2). A file is read once for all of its
    crops, which seed, epoch and index decide.

    Args:
        images: files.
        global_crops: the kind of each global crop, all of one size.
        local_crops: likewise of each local crop; empty for none.
        patch_size: pixels of a patch's side, by which the size of an example is counted.
        shuffle: whether the order changes between epochs, as in training.
        seed: of all that is drawn, with epoch and index.
    """

    def __init__(
        self,
        images: Sequence[Path],
        *,
        global_crops: Sequence[CropKind],
        local_crops: Sequence[CropKind],
        patch_size: int,
        shuffle: bool,
        seed: int,
    ):
        super().__init__(len(images), shuffle=shuffle, groups=None, seed=seed)
        self.images = images
        self.kinds = {"global_crops": global_crops, "local_crops": local_crops}
        every = [*global_crops, *local_crops]
        self.image_size = max(kind.image_size for kind in every)
        self.patches = sum((kind.size // patch_size) ** 2 for kind in every)

    def __getitem__(self, index: int) -> Example:
        image = int(self.order[index])
        rng = self.generator(index)
        pixels = load_pixels(self.images[image], self.image_size)
        crops = {name: [kind.draw(pixels, rng) for kind in kinds] for name, kinds in self.kinds.items() if kinds}
        return {"id": image, **{name: torch.stack(drawn) for name, drawn in crops.items()}}

    def collater(self, examples: list[Example]) -> dict[str, Any]:
        """A batch: crops (views, images, 3, size, size) of uint8."""
        if not examples:
            return {}
        names = [name for name, kinds in self.kinds.items() if kinds]
        return {
            "id": torch.tensor([example["id"] for example in examples]),
            "nsentences": len(examples),
            "ntokens": len(examples) * self.patches,
            "net_input": {name: torch.stack([example[name] for example in examples], 1) for name in names},
        }

    def num_tokens(self, index: int) -> int:
        """Patches of all crops of an image."""
        return self.patches

    def size(self, index: int) -> int:
        """Patches of all crops of an image, as ``num_tokens`` counts them."""
        return self.patches
