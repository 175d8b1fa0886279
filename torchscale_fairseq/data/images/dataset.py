"""Images as patches, with or without something to predict of each."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchscale_fairseq.data.drawn_order import DrawnOrder
from torchscale_fairseq.data.images.patches import ImagePatches
from torchscale_fairseq.data.images.stored import ImageFile
from torchscale_fairseq.data.images.views import Augmentation, View

Example = dict[str, Any]


class ImageDataset(DrawnOrder):
    """Images and targets. An index is a place in the order of an epoch, in which images are shuffled or drawn.

    Args:
        images: files.
        targets: (images, ...), what the criterion compares scores with; None where the pixels are all.
        img_size, patch_size: pixels of a side, of the scaled image and of a patch.
        augmentation: what is drawn; None for images as they are, in their order, as for validation.
        groups: of each image, which all come up equally often, rare ones repeatedly; None for each image once.
        stream: leave it to the model to read patches, a row at a time, when it needs them; otherwise they are read
            here, by the data loader's workers.
        seed: of all that is drawn, with epoch and index.
        transform: of the patches of whole images, with a seed; None for none.
    """

    def __init__(
        self,
        images: Sequence[ImageFile],
        targets: Tensor | None,
        *,
        img_size: int,
        patch_size: int,
        augmentation: Augmentation | None,
        groups: Sequence[int] | None,
        stream: bool,
        seed: int,
        transform: Callable[[Tensor, int], Tensor] | None = None,
    ):
        self.images = images
        self.targets = targets
        self.img_size = img_size
        self.patch_size = patch_size
        self.augmentation = augmentation
        self.stream = stream
        self.transform = transform
        self.patches = (img_size // patch_size) ** 2
        self.own = range(self.patches)
        """Which patches this process reads."""
        super().__init__(len(images), shuffle=augmentation is not None, groups=groups, seed=seed)

    def __getitem__(self, index: int) -> Example:
        return self.read(int(self.order[index]), self.generator(index))

    def read(self, image: int, rng: np.random.Generator) -> Example:
        """An image, and its target if there are targets.

        Args:
            image: its place among the files.
            rng: draws the augmentation.
        """
        view = View() if self.augmentation is None else self.augmentation.draw(rng)
        patches = ImagePatches(self.images[image], self.img_size, self.patch_size, view, self.own.start, self.own.stop)
        target = {} if self.targets is None else {"target": self.targets[image]}
        if self.stream:
            return {"id": image, "patches": patches, **target}
        pixels = patches.read()
        if self.transform is not None:
            pixels = self.transform(pixels, int(rng.integers(2**63)))
        return {"id": image, "patches": pixels, **target}

    def collater(self, examples: list[Example]) -> dict[str, Any]:
        """A batch: images as patches (batch, patches, 3, patch_size, patch_size) of uint8 or, streaming, as
        ``ImagePatches``; and targets, if there are any."""
        if not examples:
            return {}
        patches = [example["patches"] for example in examples]
        return {
            "id": torch.tensor([example["id"] for example in examples]),
            "nsentences": len(examples),
            "ntokens": len(examples) * len(self.own),
            "net_input": {"patches": patches if self.stream else torch.stack(patches)},
            **({} if self.targets is None else {"target": torch.stack([example["target"] for example in examples])}),
        }

    def num_tokens(self, index: int) -> int:
        """Patches of an image."""
        return self.patches

    def size(self, index: int) -> int:
        """Patches of an image, as ``num_tokens`` counts them."""
        return self.patches
