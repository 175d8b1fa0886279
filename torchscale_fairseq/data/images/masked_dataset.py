"""Images whose patches are hidden in blocks, to be predicted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchscale_fairseq.data.images.block_masks import BlockMasks
from torchscale_fairseq.data.images.dataset import Example, ImageDataset


class MaskedImages(ImageDataset):
    """Images and a mask of each, which seed, epoch and index decide.

    Args:
        images: files.
        ids: (images, patches), the ids of a tokenizer; None to predict pixels.
        masks: draws a mask.
        options: further arguments of ``ImageDataset``.
    """

    def __init__(self, images: Sequence[Path], ids: Tensor | None, masks: BlockMasks, **options: Any):
        super().__init__(images, ids, groups=None, stream=False, **options)
        self.masks = masks

    def read(self, image: int, rng: np.random.Generator) -> Example:
        """An image, its mask (patches,), True for hidden patches, and its ids if there are any."""
        return {**super().read(image, rng), "masked_patches": torch.from_numpy(self.masks(rng))}

    def collater(self, examples: list[Example]) -> dict[str, Any]:
        """A batch: patches and masks (batch, patches), and ids as target if there are any."""
        batch = super().collater(examples)
        if batch:
            batch["net_input"]["masked_patches"] = torch.stack([example["masked_patches"] for example in examples])
        return batch
